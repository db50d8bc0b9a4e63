"""The registry from its Python side: publishing, finding, promoting, ranking, and what it refuses."""

import itertools
import json
from pathlib import Path

import pytest

from graft.hub.errors import (
    ArtifactError,
    BaseMismatchError,
    ConflictError,
    DataError,
    GraftError,
    NotFoundError,
    RepoNotFoundError,
    RevisionNotFoundError,
    StaleParentError,
)
from graft.hub.evaluation.metrics import METRICS, Metric
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query

LAUGHS = (
    "---\na: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefgh")) + "---\n"
)
EVAL_SET = b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'


def test_publish_then_resolve_then_pull(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    revision = registry.publish(adapter, "ann/news", tags=["v1"], user="ann", message="First")
    assert len(revision.id) == 40 and revision.method == "lora" and revision.task == "news-topic"
    assert revision.base_id == "acme/tiny-llama" and revision.max_rank == 4
    for name in ("ann/news", "ann/news@v1", "ann/news@main", f"ann/news@{revision.id}", f"ann/news@{revision.id[:9]}"):
        assert registry.resolve(name) == revision
    registry.pull("ann/news@v1", tmp_path / "out")
    for path in adapter.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert registry.repo("ann/news").downloads == 1


def test_publishing_the_same_again_changes_nothing(registry: Registry, adapter: Path) -> None:
    first = registry.publish(adapter, "ann/news")
    assert registry.publish(adapter, "ann/news") == first
    assert len(registry.revisions("ann/news")) == 1


def test_a_new_version_replaces_the_whole_folder(
    registry: Registry, adapter: Path, tmp_path: Path, lora_folder
) -> None:
    (adapter / "notes.txt").write_text("old")
    first = registry.publish(adapter, "ann/news")
    second = registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/news")
    assert second.parent == first.id and second.digest != first.digest
    assert "notes.txt" in registry.tree(first.id) and "notes.txt" not in registry.tree(second.id)
    assert [revision.id for revision in registry.revisions("ann/news")] == [second.id, first.id]


def test_equal_files_are_stored_once(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.publish(adapter, "ann/news")
    before = sorted(registry.blobs.names())
    registry.publish(adapter, "bob/copy")
    assert sorted(registry.blobs.names()) == before


def test_search_by_every_facet(registry: Registry, adapter: Path, tmp_path: Path, lora_folder) -> None:
    registry.publish(adapter, "ann/news")
    registry.publish(lora_folder(tmp_path / "b", seed=1, task="sentiment", license="mit"), "bob/mood")
    found = {
        "text": registry.search(Query(text="headl", task="news-topic")),
        "task": registry.search(Query(task="news-topic")),
        "license": registry.search(Query(license="apache-2.0")),
        "author": registry.search(Query(author="ann")),
        "labels": registry.search(Query(labels=("task:news-topic", "base_model:adapter:acme/tiny-llama"))),
    }
    assert {key: [entry.name for entry in page.entries] for key, page in found.items()} == {
        key: ["ann/news"] for key in found
    }
    assert registry.search(Query(base="acme/tiny-llama")).total == registry.search(Query(base="f" * 64)).total == 2
    assert registry.search(Query(text='"; DROP TABLE repos --')).total == 0
    assert registry.search(Query(text="ann\0news")).total == 1
    with pytest.raises(GraftError, match="sort by 'best'"):
        registry.search(Query(sort="best"))


def test_promote_history_and_rollback(registry: Registry, adapter: Path, tmp_path: Path, lora_folder) -> None:
    first = registry.publish(adapter, "ann/news")
    second = registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/news")
    registry.promote(f"ann/news@{first.id}", "production", who="ann", why="best so far")
    registry.promote("ann/news", "production", who="bob", why="better")
    assert registry.resolve("ann/news@production") == registry.resolve("task:news-topic") == second
    assert registry.rollback("ann/news", "production", who="ann", why="it broke") == first
    moves = [(m.old, m.new, m.who, m.why) for m in registry.history("ann/news") if m.kind == "alias"]
    assert moves == [
        (second.id, first.id, "ann", "it broke"),
        (first.id, second.id, "bob", "better"),
        (None, first.id, "ann", "best so far"),
    ]
    with pytest.raises(RevisionNotFoundError, match="in production on this base"):
        registry.resolve("task:news-topic", base="0" * 64)
    with pytest.raises(ConflictError, match="already a branch"):
        registry.promote("ann/news", "main")


def test_a_stale_parent_is_refused_and_a_repeated_commit_is_not(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    first = registry.publish(adapter, "ann/news")
    note = tmp_path / "note.txt"
    note.write_text("one")
    change = [Put("note.txt", registry.store_file("note.txt", note))]
    second = registry.commit("ann/news", change, title="note", parent=first.id)
    assert registry.commit("ann/news", change, title="note", parent=first.id) == second
    third = registry.commit("ann/news", change, title="only that", parent=second.id, replace=True)
    assert registry.commit("ann/news", change, title="only that", parent=second.id, replace=True) == third
    assert list(registry.tree(third.id)) == ["note.txt"]
    note.write_text("two")
    other = [Put("note.txt", registry.store_file("note.txt", note))]
    with pytest.raises(StaleParentError, match="moved on"):
        registry.commit("ann/news", other, title="note", parent=first.id)


def test_names_are_never_issued_twice(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")
    registry.delete_repo("ann/news")
    with pytest.raises(RepoNotFoundError):
        registry.resolve("ann/news")
    with pytest.raises(ConflictError, match="not issued twice"):
        registry.publish(adapter, "ANN/News")


def test_a_moved_repo_answers_to_its_old_name(registry: Registry, adapter: Path) -> None:
    revision = registry.publish(adapter, "ann/news")
    registry.move_repo("ann/news", "team/headlines")
    assert registry.resolve("ann/news").id == registry.resolve("team/headlines").id == revision.id
    assert [entry.name for entry in registry.search(Query(text="headlines")).entries] == ["team/headlines"]
    with pytest.raises(ConflictError):
        registry.create_repo("ann/news")


def test_a_repo_takes_an_earlier_name_back_and_no_other_does(registry: Registry, adapter: Path) -> None:
    revision = registry.publish(adapter, "ann/news")
    registry.move_repo("ann/news", "ann/nwes")
    registry.move_repo("ann/nwes", "team/headlines")
    registry.create_repo("bob/other")
    with pytest.raises(ConflictError, match="not issued twice"):
        registry.move_repo("bob/other", "ann/news")
    assert registry.move_repo("team/headlines", "ann/news").name == "ann/news"
    for name in ("ann/news", "ann/nwes", "team/headlines"):
        assert registry.resolve(name) == registry.resolve("ann/news")
    assert registry.resolve("ann/news").id == revision.id
    assert {entry.name for entry in registry.search(Query()).entries} == {"ann/news", "bob/other"}
    assert registry.move_repo("ann/news", "team/headlines").name == "team/headlines"
    assert check(registry).problems == ()


def test_leaderboard_ranks_only_the_present_data(registry: Registry, adapter: Path) -> None:
    task = registry.add_task("news-topic", "accuracy", EVAL_SET, "Which topic?")
    revision = registry.publish(adapter, "ann/news")
    shared = {"task": task.slug, "data_hash": task.data_hash, "metric": "accuracy", "n": 2, "engine": "graft 0.1"}
    base = {"base_fingerprint": "f" * 64}
    ours = {"repo": "ann/news", "revision": revision.id, "digest": revision.digest}
    registry.record_evaluation(Evaluation(**shared, **base, value=0.5))
    measured = Evaluation(**shared, **base, **ours, value=0.9, low=0.8, high=0.95, extra={"seed": 1})
    registry.record_evaluation(measured)
    board = registry.leaderboard("news-topic", base="acme/tiny-llama")
    assert [(row.rank, row.evaluation.repo, row.evaluation.value) for row in board] == [
        (1, "ann/news", 0.9),
        (0, None, 0.5),
    ]
    assert registry.search(Query(task="news-topic", sort="score")).entries[0].score == 0.9
    registry.add_task("news-topic", "accuracy", EVAL_SET + EVAL_SET, "Which topic?")
    assert registry.leaderboard("news-topic") == [] and registry.search(Query()).entries[0].score is None
    assert registry.evaluations("ann/news")[0].extra == {"seed": 1}


def test_a_task_needs_examples(registry: Registry) -> None:
    with pytest.raises(DataError, match="line 2"):
        registry.add_task("t", "accuracy", b'{"prompt": "a", "completion": "b"}\n{"prompt": "x"}\n', "")
    with pytest.raises(DataError, match="no example"):
        registry.add_task("t", "accuracy", b"\n", "")
    with pytest.raises(NotFoundError, match="there are: none yet"):
        registry.task("t")


def test_what_a_card_claims_is_kept_apart(registry: Registry, tmp_path: Path, lora_folder) -> None:
    card = (
        "---\ntags: [task:news-topic]\nmodel-index:\n- name: x\n  results:\n  - task: {type: news-topic}\n"
        "    dataset: {name: bbc, revision: abc}\n    metrics: [{type: accuracy, value: 0.99}]\n---\n"
    )
    registry.publish(lora_folder(tmp_path / "a", card=card), "ann/news")
    registry.add_task("news-topic", "accuracy", EVAL_SET, "")
    [claim] = registry.evaluations("ann/news")
    assert claim.source == "self-reported" and claim.value == 0.99
    assert registry.leaderboard("news-topic") == []


def test_a_local_base_path_becomes_the_recorded_id(registry: Registry, tmp_path: Path, lora_folder) -> None:
    registry.publish(lora_folder(tmp_path / "a", base="/home/ann/bases/tiny"), "ann/news")
    registry.pull("ann/news", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "acme/tiny-llama"
    )
    assert "base_model: acme/tiny-llama" in (tmp_path / "out/README.md").read_text()


def test_a_local_base_path_nobody_recorded_is_refused(registry: Registry, tmp_path: Path, lora_folder) -> None:
    with pytest.raises(ArtifactError, match="graft base import"):
        registry.publish(lora_folder(tmp_path / "a", base="/home/ann/x", fingerprint=None), "ann/news")


def test_a_base_beside_its_weights_is_recorded_on_the_way(tmp_path: Path, lora_folder, base_spec) -> None:
    registry = Registry(tmp_path / "registry.db")
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "graft-base.json").write_text(base_spec("acme/other").to_json())
    revision = registry.publish(lora_folder(tmp_path / "a", base=str(folder)), "ann/news")
    assert revision.base_id == "acme/other" and registry.base("acme/other").hidden_size == 32


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (
            lambda f, make: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            ArtifactError,
            "as a pickle only",
        ),
        (lambda f, make: (f / "graft.json").write_bytes(b"\x80\x04x"), ArtifactError, "pickle"),
        (
            lambda f, make: ((f / "README.md").unlink(), (f / "README.md").symlink_to("/etc/passwd")),
            ArtifactError,
            "symbolic link",
        ),
        (lambda f, make: (f / "adapter_config.json").write_text("{"), ArtifactError, "not valid JSON"),
        (lambda f, make: (f / "adapter_config.json").unlink(), ArtifactError, "holds no adapter_config.json"),
        (lambda f, make: (f / "README.md").write_text("---\na: ["), ArtifactError, "never closes"),
        (lambda f, make: (f / "README.md").write_text("---\na: [\n---\n"), ArtifactError, "not valid YAML"),
        (lambda f, make: (f / "README.md").write_bytes(b"\xff\xfe"), ArtifactError, "can't be read as text"),
        (lambda f, make: (f / "README.md").write_text(LAUGHS), ArtifactError, "aliases"),
        (lambda f, make: (f / "README.md").write_text(f"---\na: {'[' * 9999}\n---\n"), ArtifactError, "not valid YAML"),
        (
            lambda f, make: (f / "README.md").write_text(f"---\na: {'x' * 99999}\n---\n"),
            ArtifactError,
            "at most 65,536",
        ),
        (lambda f, make: (f / "README.md").write_bytes(b" " * (5 << 20)), ArtifactError, "larger than 4 MiB"),
        (lambda f, make: (f / "adapter_config.json").write_bytes(b" " * (5 << 20)), ArtifactError, "larger than 4 MiB"),
        (lambda f, make: (f / "graft.json").write_bytes(b" " * (5 << 20)), ArtifactError, "larger than 4 MiB"),
        (lambda f, make: make(f, fingerprint="e" * 64, base="/nowhere"), ArtifactError, "graft base import"),
        (
            lambda f, make: (f / "adapter_model.safetensors").write_bytes(
                (f / "adapter_model.safetensors").read_bytes()[:-4]
            ),
            ArtifactError,
            "adapter_model.safetensors",
        ),
    ],
)
def test_a_bad_publish_leaves_nothing_behind(
    registry: Registry, adapter: Path, lora_folder, spoil, error, match
) -> None:
    spoil(adapter, lora_folder)
    with pytest.raises(error, match=match):
        registry.publish(adapter, "ann/news")
    with pytest.raises(RepoNotFoundError):
        registry.repo("ann/news")
    assert registry.search(Query()).total == 0 and not list(registry.blobs.incoming.iterdir())


def test_shapes_are_checked_against_the_recorded_base(registry: Registry, adapter: Path, spec) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["q_proj", "v_proj", "k_proj"]})
    )
    with pytest.raises(ArtifactError, match="lacks"):
        registry.publish(adapter, "ann/news")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises((ArtifactError, BaseMismatchError)):
        registry.publish(adapter, "ann/news")


@pytest.mark.parametrize("name", ["news", "ann/", "/news", "ann/../x", "ann/a--b", "a b/c", "ann/news/x", "ann/.news"])
def test_bad_names_are_refused(registry: Registry, adapter: Path, name: str) -> None:
    with pytest.raises(GraftError, match="NAMESPACE/NAME"):
        registry.publish(adapter, name)


def test_a_metric_says_which_way_is_up(registry: Registry, tmp_path: Path, lora_folder, monkeypatch) -> None:
    monkeypatch.setitem(
        METRICS, "errors", Metric("errors", "Errors", "text", False, lambda *_: 0.0, lower_is_better=True)
    )
    task = registry.add_task("t", "errors", EVAL_SET, "")
    assert task.lower_is_better and not registry.add_task("u", "f1", EVAL_SET, "").lower_is_better
    for name, value in (("ann/many", 0.9), ("ann/few", 0.1)):
        registry.publish(lora_folder(tmp_path / name, task="t"), name)
        registry.record_evaluation(Evaluation("t", task.data_hash, "errors", value, 2, repo=name))
    assert [row.evaluation.repo for row in registry.leaderboard("t")] == ["ann/few", "ann/many"]
    with pytest.raises(GraftError, match="Unknown metric"):
        registry.add_task("t", "rouge_l", EVAL_SET, "")
