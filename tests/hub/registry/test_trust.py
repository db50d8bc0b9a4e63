"""What a write token can't make others believe: bases, scores, and what a task serves."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from werkzeug.test import Client, TestResponse

from graft.hub.base.manifest import BaseSpec
from graft.hub.cli.main import main
from graft.hub.errors import (
    ConflictError,
    DisabledRepoError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    RevisionNotFoundError,
)
from graft.hub.evaluation.metrics import METRICS
from graft.hub.registry import withdrawal
from graft.hub.registry.access.tokens import caller_of, create_token
from graft.hub.registry.leaderboard import MEASURED, REPORTED, Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.web.app import create_app

EVAL_SET = b'{"prompt": "a", "completion": "b"}\n'
SCOPES = {"root": "admin", "ann": "write", "bob": "write", "eve": "evaluator"}
Ask = Callable[..., TestResponse]


@pytest.fixture
def tokens(registry: Registry) -> dict[str, str]:
    return {user: create_token(registry.db, user, scope) for user, scope in SCOPES.items()}


@pytest.fixture
def ask(registry: Registry, tokens: dict[str, str]) -> Ask:
    """`ask("bob", "PUT", path, {...})` is a request by bob."""
    client: Client = create_app(registry).test_client()

    def asking(user: str, method: str, path: str, body: Any = None) -> TestResponse:
        return client.open(path, method=method, json=body, headers={"Authorization": f"Bearer {tokens[user]}"})

    return asking


# Bases


def test_a_writers_manifest_counts_for_nobody_else(
    registry: Registry, ask: Ask, base_spec, lora_folder, tmp_path: Path
) -> None:
    """B4: an empty or wrong manifest under a public fingerprint made everybody's adapters unsound."""
    other = json.loads(base_spec("acme/other", "a" * 64).to_json())
    wrong = json.loads(base_spec("acme/other", "a" * 64).to_json())
    for name, module in wrong["modules"].items():
        if "q_proj" in name:
            module["out_features"] = 77
    assert ask("bob", "POST", "/api/bases", wrong).json["for_everybody"] is False
    with pytest.raises(NotFoundError):
        registry.base("acme/other")
    folder = lora_folder(tmp_path / "a", base="acme/other", fingerprint="a" * 64)
    assert registry.publish(folder, "ann/news", user="ann").base_fingerprint == "a" * 64
    with pytest.raises(GraftError, match="needs"):
        registry.publish(folder, "bob/news", user="bob")
    assert ask("root", "POST", "/api/bases", other).json["for_everybody"] is True
    assert registry.base("acme/other").modules["model.layers.0.self_attn.q_proj"].out_features == 32
    assert registry.publish(folder, "bob/news", user="bob").base_id == "acme/other"
    assert ask("bob", "POST", "/api/bases", wrong).status_code == 200  # and changes nothing
    assert registry.base("acme/other").modules["model.layers.0.self_attn.q_proj"].out_features == 32


def test_a_second_base_can_not_take_an_id(registry: Registry, ask: Ask, base_spec, spec: BaseSpec) -> None:
    """It would switch off the check of all that name the base by its id."""
    twin = json.loads(base_spec(spec.id, "e" * 64).to_json())
    for user in ("root", "bob"):
        reply = ask(user, "POST", "/api/bases", twin)
        assert reply.status_code == (409 if user == "root" else 200), reply.text
    assert "id of another base here" in ask("root", "POST", "/api/bases", twin).json["error"]
    assert registry.base(spec.id) == spec
    with pytest.raises(ConflictError):
        registry.add_base(base_spec(spec.id, "e" * 64))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("modules", {}, "lacks the module model.layers.0.self_attn.q_proj"),
        ("modules", {"x": {"kind": "linear"}}, "modules.x.in_features"),
        ("model_type", [1], "model_type: Input should be a valid string"),
        ("model_type", "frog", "Unknown model family 'frog'"),
        ("fingerprint", ["x"], "fingerprint: Input should be a valid string"),
        ("fingerprint", "x", "not 64 hex digits"),
        ("hidden_size", "32", "hidden_size: Input should be a valid integer"),
        ("hidden_size", 32.0, "hidden_size: Input should be a valid integer"),
        ("hidden_size", True, "hidden_size: Input should be a valid integer"),
        ("num_layers", 0, "a size is not between"),
        ("num_layers", 10**30, "a size is not between"),
        ("num_layers", 3, "lacks the module model.layers.2"),
        ("rotary", 1, "rotary: Input should be a valid boolean"),
        ("id", "no slash", "not of the form ORG/NAME"),
        ("id", None, "no id yet"),
        ("extra", 1, "extra: Unexpected keyword argument"),
    ],
)
def test_a_manifest_is_read_strictly(ask: Ask, base_spec, field: str, value: object, said: str) -> None:
    manifest = json.loads(base_spec("acme/other", "a" * 64).to_json()) | {field: value}
    for user in ("root", "bob"):
        reply = ask(user, "POST", "/api/bases", manifest)
        assert 400 <= reply.status_code < 500 and said in reply.json["error"], reply.text


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"modules": NaN}', "[" * 100_000, "\ud800"])
def test_what_is_no_manifest_at_all(registry: Registry, tokens: dict[str, str], body: str) -> None:
    data = body.encode("utf-8", "surrogatepass")
    headers = {"Authorization": f"Bearer {tokens['bob']}"}
    reply = create_app(registry).test_client().post("/api/bases", data=data, headers=headers)
    assert reply.status_code == 400 and reply.json["error"], reply.text


def test_claims_do_not_pile_up(registry: Registry, ask: Ask, base_spec) -> None:
    for number in range(25):
        made = json.loads(base_spec(f"acme/b{number}", f"{number:064x}").to_json())
        assert ask("bob", "POST", "/api/bases", made).status_code == 200
    assert registry.db.execute("SELECT count(*) FROM base_claims").fetchone()[0] == 20


def test_a_normal_writer_publishes_with_a_base_at_hand(
    hub: str, registry: Registry, tokens: dict[str, str], base_spec, lora_folder, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base/graft-base.json").write_text(base_spec("acme/other", "a" * 64).to_json())
    folder = lora_folder(tmp_path / "x", base=str(tmp_path / "base"), fingerprint="a" * 64)
    revision = RemoteRegistry(hub, token=tokens["bob"]).publish(folder, "bob/news")
    assert (revision.base_id, revision.base_fingerprint) == ("acme/other", "a" * 64)
    assert registry.found(revision.id).warnings == []  # its shapes were checked, by bob's own manifest
    unfit = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(unfit | {"r": 8}))
    with pytest.raises(GraftError):
        RemoteRegistry(hub, token=tokens["bob"]).publish(folder, "bob/news")
    assert [base["id"] for base in registry.bases()] == ["acme/tiny-llama"]


# Scores


@pytest.fixture
def score(registry: Registry, adapter: Path) -> dict[str, object]:
    """A score of ann's adapter."""
    registry.publish(adapter, "ann/news", user="ann")
    task = registry.add_task("news-topic", "accuracy", EVAL_SET, "")
    return {
        "task": task.slug,
        "data_hash": task.data_hash,
        "metric": "accuracy",
        "value": 0.5,
        "n": 1,
        "repo": "ann/news",
    }


def test_who_measures_and_who_claims(registry: Registry, ask: Ask, score: dict[str, object]) -> None:
    """B5: any owner could rank first with an accuracy of 999, "run by graft"."""
    claimed = ask("ann", "POST", "/api/evaluations", score | {"value": 1.0})
    assert claimed.status_code == 200 and claimed.json["source"] == REPORTED and claimed.json["who"] == "ann"
    assert registry.leaderboard("news-topic") == []
    assert ask("ann", "POST", "/api/evaluations", score | {"source": MEASURED}).status_code == 403
    assert ask("bob", "POST", "/api/evaluations", score).status_code == 403
    assert ask("bob", "POST", "/api/evaluations", score | {"source": REPORTED}).status_code == 403
    for user in ("eve", "root"):
        answers = {"predictions_hash": "7" * 64, "engine": "graft 1 cpu float32"}
        measured = ask(user, "POST", "/api/evaluations", score | answers)
        assert (measured.json["source"], measured.json["who"]) == (MEASURED, user)
        [row] = registry.leaderboard("news-topic")
        assert (row.evaluation.who, row.evaluation.predictions_hash, row.evaluation.id) == (
            user,
            "7" * 64,
            measured.json["id"],
        )
        assert ask("bob", "GET", f"/api/evaluations/{measured.json['id']}").json == measured.json
    bare = {key: value for key, value in score.items() if key != "repo"} | {"base_fingerprint": "f" * 64}
    assert ask("ann", "POST", "/api/evaluations", bare).status_code == 403
    assert ask("eve", "POST", "/api/evaluations", bare).status_code == 200
    page = ask("bob", "GET", "/tasks/news-topic").text
    assert "Measured by" in page and "root" in page


@pytest.mark.parametrize(
    ("spoilt", "status", "said"),
    [
        ({"value": 999.0}, 400, "lies between 0 and 1"),
        ({"value": -0.1}, 400, "lies between 0 and 1"),
        ({"value": 0.5, "low": 0.6}, 400, "within its interval"),
        ({"value": 0.5, "high": 1.5}, 400, "lies between 0 and 1"),
        ({"n": 1_000_000}, 409, "has 1 examples"),
        ({"n": 0}, 400, "one example at least"),
        ({"data_hash": "0" * 64}, 409, "is no evaluation set of news-topic"),
        ({"task": "nothing"}, 404, "There is no task"),
        ({"metric": "beauty"}, 400, "Unknown metric"),
        ({"source": "oracle"}, 400, "source: Input should be 'graft' or 'self-reported'"),
        ({"metric": "chrf", "value": 101.0}, 400, "lies between 0 and 100"),
    ],
)
def test_a_score_is_one_that_can_be(ask: Ask, score: dict[str, object], spoilt: dict, status: int, said: str) -> None:
    for user in ("eve", "root"):
        reply = ask(user, "POST", "/api/evaluations", score | spoilt)
        assert reply.status_code == status and said in reply.json["error"], reply.text


def test_a_score_on_the_data_of_before_is_kept_and_not_ranked(registry: Registry, ask: Ask, score: dict) -> None:
    registry.add_task("news-topic", "accuracy", EVAL_SET * 2, "a new set while the old one was measured")
    kept = ask("eve", "POST", "/api/evaluations", score)
    assert kept.status_code == 200 and registry.leaderboard("news-topic") == []
    assert registry.task_data("news-topic", score["data_hash"]) == EVAL_SET


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_knows_its_range(name: str) -> None:
    metric = METRICS[name]
    for prediction in ("", "a", "a b", "the same words", "<", "é" * 50):
        for reference in ("", "a", "b a", "the same words", ">", "e" * 50):
            assert metric.least <= metric.value(prediction, reference) <= metric.most + 1e-9


# What a task serves


@pytest.fixture
def promoted(registry: Registry, score: dict, lora_folder, tmp_path: Path) -> str:
    """ann's adapter is what task:news-topic serves; bob has one for the same task. Returns ann's revision."""
    registry.promote("ann/news", "production")
    registry.publish(lora_folder(tmp_path / "bobs", seed=1), "bob/mine", user="bob")
    return registry.resolve("ann/news").id


def test_a_writer_can_not_take_a_task_over(registry: Registry, ask: Ask, promoted: str) -> None:
    """B6: bob's own card says what task his adapter is for, and every server took it."""
    done = ask("bob", "PUT", "/api/adapters/bob/mine/aliases/production", {})
    assert done.status_code == 200 and registry.resolve("bob/mine@production").repo == "bob/mine"
    assert registry.resolve("task:news-topic").id == promoted
    client = create_app(registry).test_client()
    assert client.get("/api/resolve?name=task:news-topic").json["id"] == promoted


def test_owners_say_what_their_task_serves(registry: Registry, ask: Ask, promoted: str) -> None:
    path = "/api/tasks/news-topic/owners"
    assert ask("bob", "PUT", path, {"owners": ["bob"]}).status_code == 403
    assert ask("root", "PUT", path, {"owners": ["Bob"]}).json["owners"] == ["bob"]
    assert registry.task("news-topic").owners == registry.tasks()[0].owners == ["bob"]
    ask("bob", "PUT", "/api/adapters/bob/mine/aliases/staging", {})
    assert registry.resolve("task:news-topic").id == promoted
    ask("bob", "PUT", "/api/adapters/bob/mine/aliases/production", {})
    assert registry.resolve("task:news-topic").repo == "bob/mine"
    ask("ann", "PUT", "/api/adapters/ann/news/aliases/production", {})  # ann owns it no longer
    assert registry.resolve("task:news-topic").repo == "bob/mine"
    assert ask("root", "PUT", path, {"owners": []}).json["owners"] == []
    assert ask("root", "PUT", path, {"owners": ["no/slash"]}).status_code == 400
    assert ask("root", "PUT", path, {"owners": "bob"}).status_code == 400
    assert ask("root", "PUT", "/api/tasks/nothing/owners", {"owners": []}).status_code == 404


def test_a_new_evaluation_set_leaves_the_owners(registry: Registry, ask: Ask, promoted: str) -> None:
    body = {"metric": "accuracy", "data": EVAL_SET.decode()}
    assert ask("root", "PUT", "/api/tasks/news-topic", body | {"owners": ["ann"]}).json["owners"] == ["ann"]
    assert ask("root", "PUT", "/api/tasks/news-topic", body).json["owners"] == ["ann"]


def test_what_was_in_production_stays_there_when_its_owner_moves_the_alias(
    registry: Registry, ask: Ask, promoted: str, lora_folder, tmp_path: Path
) -> None:
    """An adapter that an admin once put there is no way in for its repo's owner afterwards."""
    newer = registry.publish(lora_folder(tmp_path / "evil", seed=9), "ann/news", user="ann")
    ask("ann", "PUT", "/api/adapters/ann/news/aliases/production", {})
    assert registry.resolve("ann/news@production").id == newer.id
    assert registry.resolve("task:news-topic").id == promoted


def test_the_pointer_follows_rollbacks_and_withdrawals_of_who_may(
    registry: Registry, promoted: str, lora_folder, tmp_path: Path, tokens: dict[str, str]
) -> None:
    newer = registry.publish(lora_folder(tmp_path / "newer", seed=9), "ann/news", user="ann")
    registry.promote("ann/news", "production")
    assert registry.resolve("task:news-topic").id == newer.id
    registry.rollback("ann/news", "production", caller=caller_of(registry.db, tokens["ann"]))
    assert registry.resolve("task:news-topic").id == newer.id
    registry.rollback("ann/news", "production")
    assert registry.resolve("task:news-topic").id == newer.id  # ann's rollback is undone, which is no news
    registry.rollback("ann/news", "production")
    assert registry.resolve("task:news-topic").id == promoted
    registry.promote("bob/mine", "production")
    assert registry.resolve("task:news-topic").repo == "bob/mine"
    registry.delete_ref("bob/mine", "alias", "production")
    assert registry.resolve("task:news-topic").id == promoted
    registry.delete_repo("ann/news")
    with pytest.raises(RevisionNotFoundError):
        registry.resolve("task:news-topic")


def test_an_adapter_that_changes_its_task_serves_the_first_no_more(
    registry: Registry, promoted: str, lora_folder, tmp_path: Path
) -> None:
    registry.publish(lora_folder(tmp_path / "other", seed=9, task="sentiment"), "ann/news", user="ann")
    registry.promote("ann/news", "production")
    assert registry.resolve("task:sentiment").repo == "ann/news"
    with pytest.raises(RevisionNotFoundError):
        registry.resolve("task:news-topic")


def test_a_private_adapter_serves_only_those_who_see_it(
    registry: Registry, promoted: str, tokens: dict[str, str]
) -> None:
    registry.promote("bob/mine", "production")
    registry.set_private("bob/mine", True)
    who = {user: caller_of(registry.db, token) for user, token in tokens.items()}
    assert registry.resolve("task:news-topic", caller=who["bob"]).repo == "bob/mine"
    assert registry.resolve("task:news-topic", caller=who["ann"]).id == promoted


def test_scores_of_a_hidden_adapter_are_nobodys_business(
    registry: Registry, ask: Ask, score: dict[str, object]
) -> None:
    kept = ask("eve", "POST", "/api/evaluations", score).json["id"]
    registry.set_private("ann/news", True)
    hidden, missing = (ask("bob", "GET", f"/api/evaluations/{id}") for id in (kept, 999))
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json["error"].replace(str(kept), "999") == missing.json["error"]
    assert ask("ann", "GET", f"/api/evaluations/{kept}").status_code == 200
    assert ask("eve", "POST", "/api/evaluations", score).status_code == 404


# The same over a hub, as commands and clients see it


def test_owners_scores_and_data_over_a_hub(
    hub: str, registry: Registry, tokens: dict[str, str], score: dict[str, object]
) -> None:
    root, ann, eve = (RemoteRegistry(hub, token=tokens[user]) for user in ("root", "ann", "eve"))
    assert root.set_task_owners("news-topic", ["ann"]).owners == ann.task("news-topic").owners == ["ann"]
    with pytest.raises(ForbiddenError):
        ann.set_task_owners("news-topic", ["ann", "bob"])
    assert root.add_task("news-topic", "accuracy", EVAL_SET * 2, "", owners=["bob"]).owners == ["bob"]
    assert ann.task_data("news-topic", str(score["data_hash"])) == EVAL_SET
    assert ann.task_data("news-topic") == EVAL_SET * 2
    claimed, measured = (remote.record_evaluation(Evaluation(**score)) for remote in (ann, eve))
    assert (claimed.source, measured.source) == (REPORTED, MEASURED)
    assert measured.id is not None and ann.evaluation(measured.id) == measured == registry.evaluation(measured.id)
    withdrawal.disable(registry.db, "ann/news", "stolen data", "root")
    with pytest.raises(DisabledRepoError, match="stolen data"):
        ann.resolve("ann/news")


def test_a_promotion_that_moves_no_task_says_so(
    hub: str, registry: Registry, promoted: str, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def graft(user: str, *words: str) -> Result:
        monkeypatch.setenv("HF_TOKEN", tokens[user])
        return CliRunner().invoke(main, [*words, "--hub", hub])

    told = graft("bob", "promote", "bob/mine", "production")
    assert told.exit_code == 0 and f"task:news-topic goes on serving ann/news@{promoted[:10]}" in told.stderr
    assert not re.search(r"\b403\b", told.output)  # as a word: a revision may have it in it
    assert "may not" not in told.output
    assert "news-topic: bob" in graft("root", "task", "owners", "news-topic", "--add", "bob").output
    refused = graft("bob", "task", "owners", "news-topic", "--remove", "bob")
    assert refused.exit_code == 1 and "needs 'admin'" in refused.output
    told = graft("bob", "promote", "bob/mine", "production")
    assert told.exit_code == 0 and not told.stderr
    assert registry.resolve("task:news-topic").repo == "bob/mine"
    gone = graft("root", "task", "owners", "news-topic", "--remove", "zoe")
    assert gone.exit_code == 1 and "zoe: no owner of news-topic (they are: bob)" in gone.output
    assert "bob" in graft("bob", "task", "list").output
