"""The commands' other side: a registry behind a URL answers like the one in a file."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from graft.hub.errors import (
    ArtifactError,
    ConflictError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    RepoNotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnreachableError,
)
from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.search import Query

EVAL_SET = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def remote(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteRegistry:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return RemoteRegistry(hub)


def test_publish_search_promote_pull(remote: RemoteRegistry, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    revision = remote.publish(adapter, "ann/news", tags=["v1"], message="First")
    local = registry.resolve("ann/news@v1")
    assert (revision.id, revision.digest, revision.method) == (local.id, local.digest, "lora")
    for wanted in ({"task": "news-topic"}, {"base": "acme/tiny-llama"}, {"method": "lora"}, {"text": "headlines"}):
        [found] = remote.search(Query(**wanted)).entries
        assert found.name == "ann/news" and found.digest == local.digest and found.license == "apache-2.0"
    assert remote.search(Query(task="sentiment")).entries == ()
    assert remote.search(Query()).entries[0].production is None
    remote.promote("ann/news@v1", "production", why="best")
    assert remote.search(Query()).entries[0].production == local.id
    assert remote.history("ann/news") == registry.history("ann/news")
    assert remote.revisions("ann/news") == registry.revisions("ann/news")
    assert remote.resolve("task:news-topic", base="f" * 64) == local
    pulled = remote.pull("ann/news@production", tmp_path / "out")
    assert pulled.id == local.id
    assert (tmp_path / "out/graft.json").read_bytes() == (adapter / "graft.json").read_bytes()


def test_a_hub_is_asked_whether_it_would_take_an_adapter(remote: RemoteRegistry, registry: Registry, adapter) -> None:
    remote.require_writer(["ann/new"])
    remote.publish(adapter, "ann/news")
    remote.require_writer(["ann/news", "ann/new"])
    bob = RemoteRegistry(remote.url, token=create_token(registry.db, "bob", "write", namespaces=("team",)))
    bob.require_writer(["bob/new", "team/new"])
    for name in ("ann/news", "ann/new"):
        with pytest.raises(ForbiddenError, match="publish under bob, team"):
            bob.require_writer(["bob/new", name])
    reader = RemoteRegistry(remote.url, token=create_token(registry.db, "reader", "read"))
    with pytest.raises(ForbiddenError, match="may only read"):
        reader.require_writer(["reader/new"])
    with pytest.raises(UnauthorizedError):
        RemoteRegistry(remote.url, token="hf_graft_nobody").require_writer(["ann/new"])
    with pytest.raises(GraftError, match="No hub answers at"):
        RemoteRegistry("http://127.0.0.1:9").require_writer(["ann/new"])


def test_a_token_that_is_none_is_said_to_be(hub: str, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    """Whatever is asked first: how a hub is recognised takes a token, too."""
    registry.publish(adapter, "ann/news")
    first_admin(registry.db, "root")
    for ask in (
        lambda remote: remote.tasks(),
        lambda remote: remote.resolve("ann/news"),
        lambda remote: remote.search(Query()),
        lambda remote: remote.pull("ann/news", tmp_path / "out"),
        lambda remote: remote.publish(adapter, "ann/news"),
        lambda remote: remote.promote("ann/news", "production"),
        lambda remote: remote.trusted_s,
    ):
        with pytest.raises(UnauthorizedError, match="unknown"):
            ask(RemoteRegistry(hub, token="hf_graft_nobody"))


def test_tasks_and_scores(remote: RemoteRegistry, registry: Registry, adapter: Path) -> None:
    task = remote.add_task("news-topic", "accuracy", EVAL_SET, "Which topic?")
    assert remote.tasks() == registry.tasks() == [task] and remote.task_data("news-topic") == EVAL_SET
    made = remote.publish(adapter, "ann/news")
    score = {"task": task.slug, "data_hash": task.data_hash, "metric": "accuracy", "value": 0.9, "n": 1}
    measured = Evaluation(**score, repo="ann/news", revision=made.id, digest=made.digest, low=0.8, high=1.0)
    remote.record_evaluation(measured)
    remote.record_evaluation(Evaluation(**score | {"value": 0.5}, base_fingerprint="f" * 64))
    board = remote.leaderboard("news-topic")
    assert board == registry.leaderboard("news-topic") and [row.rank for row in board] == [1, 0]
    assert remote.search(Query(task="news-topic", sort="score")).entries[0].score == 0.9


def test_a_base_beside_its_weights_travels_along(
    remote: RemoteRegistry, registry: Registry, tmp_path, base_spec, lora_folder
):
    base = tmp_path / "base"
    base.mkdir()
    (base / "graft-base.json").write_text(base_spec("acme/other", "a" * 64).to_json())
    folder = lora_folder(tmp_path / "x", base=str(base), fingerprint="a" * 64)
    revision = remote.publish(folder, "ann/news")
    assert revision.base_id == "acme/other" and registry.base("acme/other")
    assert str(base) in json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_refusals_keep_their_kind(remote: RemoteRegistry, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(RepoNotFoundError):
        remote.pull("ann/nothing", tmp_path / "out")
    (adapter / "graft.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"graft\.json must hold a JSON object"):
        remote.publish(adapter, "ann/news")
    with pytest.raises(NotFoundError, match="no task"):
        remote.leaderboard("nothing")
    with pytest.raises(GraftError, match="No hub answers"):
        RemoteRegistry("http://127.0.0.1:9").tasks()


def test_damaged_bytes_are_not_taken(remote: RemoteRegistry, registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.publish(adapter, "ann/news")
    blob = registry.blobs.path(registry.tree(registry.resolve("ann/news").id)["adapter_model.safetensors"])
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)
    with pytest.raises(ArtifactError, match="arrived damaged"):
        remote.pull("ann/news", tmp_path / "out")
    with pytest.raises(GraftError, match="is damaged on disk"):
        registry.pull("ann/news", tmp_path / "out2")


def test_a_token_is_needed_where_there_are_users(
    remote: RemoteRegistry, registry: Registry, hub: str, adapter: Path
) -> None:

    ann = RemoteRegistry(hub, token=first_admin(registry.db, "ann"))
    bob = RemoteRegistry(hub, token=create_token(registry.db, "bob", "write"))
    ann.publish(adapter, "ann/news")
    with pytest.raises(ForbiddenError):
        bob.promote("ann/news", "production")
    with pytest.raises(ForbiddenError):
        bob.add_task("news-topic", "accuracy", EVAL_SET, "")


def test_the_bare_base_is_scored_with_its_repo_spelled_as_none(remote: RemoteRegistry, registry: Registry) -> None:
    task = remote.add_task("news-topic", "accuracy", EVAL_SET, "")
    score = {"task": task.slug, "data_hash": task.data_hash, "metric": "accuracy", "value": 0.5, "n": 1}
    remote.record_evaluation(Evaluation(**score, repo=None, revision=None, digest=None, base_fingerprint="f" * 64))
    [row] = registry.leaderboard("news-topic")
    assert row.evaluation.repo is None and row.rank == 0


def test_a_score_is_of_the_stored_revision(
    remote: RemoteRegistry, registry: Registry, adapter: Path, tmp_path: Path, lora_folder
) -> None:
    """Nobody scores weights that the named revision doesn't hold, nor another's adapter by its digest."""
    task = remote.add_task("news-topic", "accuracy", EVAL_SET, "")
    first = remote.publish(adapter, "ann/news", tags=["v1"])
    second = remote.publish(lora_folder(tmp_path / "b", seed=1), "ann/news")
    other = remote.publish(lora_folder(tmp_path / "c", seed=2), "bob/news")
    score = {"task": task.slug, "data_hash": task.data_hash, "metric": "accuracy", "value": 0.9, "n": 1}
    for wrong, said in (
        ({"digest": other.digest}, "name the revision that was measured"),
        ({"base_fingerprint": "e" * 64}, "another base"),
    ):
        with pytest.raises(ConflictError, match=said):
            remote.record_evaluation(Evaluation(**score, repo="ann/news", **wrong))
    with pytest.raises(NotFoundError, match="no revision"):
        remote.record_evaluation(Evaluation(**score, repo="ann/news", revision=other.id))
    assert registry.evaluations("ann/news") == []
    remote.record_evaluation(Evaluation(**score, repo="ann/news", revision="v1"))
    [row] = registry.evaluations("ann/news")
    assert (row.revision, row.digest, row.base_fingerprint) == (first.id, first.digest, "f" * 64)
    copy = remote.publish(tmp_path / "c", "ann/copy")
    assert copy.digest == other.digest
    remote.record_evaluation(Evaluation(**score | {"value": 0.1}, repo="ann/copy"))
    remote.record_evaluation(Evaluation(**score | {"value": 0.7}, repo="ann/news", revision=second.id))
    listed = {entry.name: entry.score for entry in registry.search(Query()).entries}
    assert listed == {"ann/news": 0.7, "ann/copy": 0.1, "bob/news": None}


def test_what_a_hub_refuses_of_a_run_costs_no_other_score(
    hub: str, registry: Registry, adapter: Path, tmp_path: Path, lora_folder
) -> None:
    """`graft eval --hub` by somebody who is no evaluator: of their own adapters the scores are kept, as self-reported."""
    from graft.server.commands.scoring.scorekeeping import BARE, Scorekeeper

    first_admin(registry.db, "root")
    task = registry.add_task("news-topic", "accuracy", EVAL_SET, "")
    ours = registry.publish(adapter, "ann/news")
    theirs = registry.publish(lora_folder(tmp_path / "b", seed=1), "bob/news")
    ann = RemoteRegistry(hub, token=create_token(registry.db, "ann", "write"))
    shared = {"task": task.slug, "data_hash": task.data_hash, "metric": "accuracy", "engine": "test"}
    keeper = Scorekeeper(ann, shared | {"base_fingerprint": "f" * 64}, "ann")
    for revision, value in ((None, 0.5), (theirs, 0.6), (ours, 0.9)):
        model = revision and f"{revision.repo}@{revision.id}"
        served = SimpleNamespace(revision=revision and revision.id, digest=revision and revision.digest)
        score = SimpleNamespace(value=value, low=0.1, high=1.0, n=1)
        answers = {"predictions": ["b"], "seconds": 1.0, "p": None}
        keeper.record(SimpleNamespace(model=model, served=served, score=score, **answers), 3)
    said: list[str] = []
    [(refused, why)] = keeper.unrecorded_scores(shelf=False, say=said.append).items()
    assert refused == "bob/news" and "may not write" in why
    assert len(said) == 2 and "self-reported, and not ranked: ann/news" in said[0] and BARE in said[1]
    assert [row.source for row in registry.evaluations("ann/news")] == ["self-reported"]
    assert registry.leaderboard("news-topic") == []


@pytest.fixture
def another_server() -> Iterator[str]:
    """The address of a web server that answers everything with the same page."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<!DOCTYPE html><title>Welcome</title>")

        do_PUT = do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_address_that_is_no_hub_is_named(another_server: str, adapter: Path) -> None:
    stranger = RemoteRegistry(another_server)
    for ask in (
        stranger.tasks,
        lambda: stranger.task("news"),
        lambda: stranger.promote("a/b", "production"),
        lambda: stranger.resolve("task:news"),
    ):
        with pytest.raises(GraftError, match="not as a graft hub"):
            ask()
    for ask in (lambda: stranger.resolve("ann/news"), lambda: stranger.search(Query())):
        with pytest.raises(
            UnreachableError, match="not as a"
        ):  # a page in front of a hub: what is known of that still holds
            ask()
    with pytest.raises(GraftError, match="no URL of a hub"):
        RemoteRegistry("hub.example")


def test_no_more_than_an_adapter_is_pulled(
    remote: RemoteRegistry, registry: Registry, adapter: Path, tmp_path: Path, monkeypatch
) -> None:
    (adapter / "checkpoint").mkdir()
    (adapter / "checkpoint/extra.safetensors").write_bytes(b"x" * 4096)
    (adapter / "LICENSE").write_text("as is")
    registry.publish(adapter, "ann/news")
    remote.pull("ann/news", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "graft.json",
        "LICENSE",
    }
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("graft.hub.registry.remote.client.MAX_PULL_BYTES", 1000)
    with pytest.raises(TooLargeError, match=r"at most 1,000 are pulled"):
        remote.pull("ann/news", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    registry.commit("ann/notes", [Put("a.txt", registry.blobs.put_bytes(b"a"))], title="x", create=True)
    with pytest.raises(ArtifactError, match="no adapter"):
        remote.pull("ann/notes", tmp_path / "again")


def test_a_publish_that_fails_leaves_no_empty_repo(
    remote: RemoteRegistry, registry: Registry, adapter: Path, tmp_path: Path, lora_folder
) -> None:
    unfit = lora_folder(tmp_path / "unfit")
    config = json.loads((unfit / "adapter_config.json").read_text())
    (unfit / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q_proj"]}))
    with pytest.raises(ArtifactError, match="silently have no effect"):
        remote.publish(unfit, "ann/news")
    with pytest.raises(RepoNotFoundError):
        registry.repo("ann/news")
    made = remote.publish(adapter, "ann/news")
    with pytest.raises(ArtifactError):
        remote.publish(unfit, "ann/news")
    assert registry.resolve("ann/news").id == made.id
