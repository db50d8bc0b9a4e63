"""One contract: a registry in a file, graft's hub over HTTP, and what a plain Hugging Face hub can do, answer alike.

`there` is the registry that lies behind each of them.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import (
    ArtifactError,
    ConflictError,
    DataError,
    GraftError,
    NotFoundError,
    NotOfferedError,
    RepoNotFoundError,
    RevisionNotFoundError,
)
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.search import Query
from graft.hub.web.app import create_app

EVAL_SET = b'{"prompt": "a", "completion": "b"}\n'
GRAFTS_OWN = (
    "/api/adapters",
    "/api/tasks",
    "/api/evaluations",
    "/api/bases",
    "/api/resolve",
    "/openapi.json",
    "/health",
)


def without_grafts_own(app: Callable) -> Callable:
    """A hub that speaks the Hugging Face protocol and nothing else."""

    def answer(environ: dict, start: Callable) -> object:
        if environ["PATH_INFO"].startswith(GRAFTS_OWN):
            start("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "9")])
            return [b"Not Found"]
        environ.pop("HTTP_X_GRAFT_TAGS", None)
        return app(environ, start)

    return answer


@pytest.fixture
def there(registry: Registry) -> Registry:
    return registry


@pytest.fixture(params=["file", "graft", "plain"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def shelf(kind: str, there: Registry, running: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AnyRegistry:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    if kind == "file":
        return there
    running["app"] = create_app(there) if kind == "graft" else without_grafts_own(create_app(there))
    return RemoteRegistry(running["url"])


grafts_own = pytest.mark.parametrize("kind", ["file", "graft"], indirect=True)


@pytest.fixture
def filled(there: Registry, tmp_path: Path, lora_folder, base_spec) -> Registry:
    """Five adapters of two tasks, two bases and two licences, one of them private, and one repo without any."""
    there.add_base(base_spec("acme/other", "e" * 64))
    for number, (name, more) in enumerate(
        {
            "ann/news": {},
            "ann/news-large": {"rank": 8},
            "ann/mood": {"task": "sentiment", "license": "mit"},
            "bob/news": {"base": "acme/other", "fingerprint": "e" * 64},
            "bob/plain": {"license": "mit", "fingerprint": None},
        }.items()
    ):
        there.publish(lora_folder(tmp_path / name, seed=number, **more), name, private=name == "ann/news-large")
    there.create_repo("ann/empty")
    for _ in range(3):
        there.count_download("ann/mood")
    return there


def names(shelf: AnyRegistry, **wanted) -> list[str]:
    return sorted(entry.name for entry in shelf.search(Query(**wanted)).entries)


# Publishing


def test_what_is_published_is_there(shelf: AnyRegistry, there: Registry, adapter: Path) -> None:
    made = shelf.publish(adapter, "ann/news", tags=["v1", "eu/best"], message="First\n\nOf many.")
    stored = there.resolve("ann/news@v1")
    assert (made.id, made.digest, made.base_fingerprint) == (stored.id, stored.digest, "f" * 64)
    assert (stored.title, stored.message) == ("First", "Of many.") and there.resolve("ann/news@eu/best") == stored
    assert shelf.resolve("ann/news").id == shelf.resolve("ann/news@eu/best").id == stored.id
    assert there.repo("ann/news").private is False


def test_private_from_the_start(shelf: AnyRegistry, there: Registry, adapter: Path) -> None:
    shelf.publish(adapter, "ann/news", private=True)
    assert there.repo("ann/news").private


def test_publishing_again_changes_nothing(shelf: AnyRegistry, there: Registry, adapter: Path) -> None:
    first = shelf.publish(adapter, "ann/news", tags=["v1"])
    moves = there.history("ann/news")
    assert shelf.publish(adapter, "ann/news", tags=["v1"]).id == first.id
    assert there.history("ann/news") == moves and len(there.revisions("ann/news")) == 1
    shelf.publish(adapter, "ann/news", tags=["v1", "v1.0"])
    assert there.resolve("ann/news@v1.0").id == first.id and len(there.revisions("ann/news")) == 1


def test_a_taken_tag_is_refused_before_anything_moves(
    shelf: AnyRegistry, there: Registry, adapter: Path, tmp_path: Path, lora_folder
) -> None:
    first = shelf.publish(adapter, "ann/news", tags=["v1"])
    shelf_before = (there.history("ann/news"), there.all_refs("ann/news"))
    other = lora_folder(tmp_path / "other", seed=1)
    for tags in (["v1"], ["v2", "v1"]):
        with pytest.raises(ConflictError, match="'v1' is already a tag here") as refused:
            shelf.publish(other, "ann/news", tags=tags)
        assert refused.value.status == 409
    assert (there.history("ann/news"), there.all_refs("ann/news")) == shelf_before
    second = shelf.publish(other, "ann/news", tags=["v2"])
    with pytest.raises(ConflictError):  # the folder is there, under another commit than the tag's
        shelf.publish(other, "ann/news", tags=["v1"])
    assert there.resolve("ann/news@v1").id == first.id and there.resolve("ann/news").id == second.id


def test_names_that_can_not_be(shelf: AnyRegistry, there: Registry, adapter: Path) -> None:
    for name, tags, said in (
        ("news", [], "no adapter name"),
        ("ann/../x", [], "no adapter name"),
        ("api/x", [], "hub's own addresses"),
        ("ann/x", ["a b"], "can't name a branch"),
        ("ann/x", ["HEAD~1"], "can't name a branch"),
        ("ann/x", ["v1,v2"], "can't name a branch"),
    ):
        with pytest.raises(GraftError, match=said) as refused:
            shelf.publish(adapter, name, tags=tags)
        assert refused.value.status == 400
    assert there.search(Query()).total == 0


def test_what_is_not_sound_leaves_nothing(shelf: AnyRegistry, there: Registry, adapter: Path) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"v_proj"', '"k_proj"'))
    with pytest.raises(ArtifactError) as refused:
        shelf.publish(adapter, "ann/news", tags=["v1"])
    assert refused.value.status == 422 and there.search(Query()).total == 0
    with pytest.raises(RepoNotFoundError):
        there.repo("ann/news")
    with pytest.raises(ArtifactError, match="is no folder"):
        shelf.publish(adapter / "nothing", "ann/news")


def test_notes_of_a_publish(shelf: AnyRegistry, there: Registry, adapter: Path, kind: str) -> None:
    card = adapter / "README.md"
    card.write_text(card.read_text().replace("base_model: acme/tiny-llama", "base_model: acme/another"))
    made = shelf.publish(adapter, "ann/news")
    noted = tuple(there.found(made.id).warnings)
    assert shelf.warnings(f"ann/news@{made.id}") == (() if kind == "plain" else noted)


def test_whoever_may_write_is_told_so(shelf: AnyRegistry) -> None:
    shelf.require_writer(["ann/news", "bob/new"])


# Finding

FILTERS = [
    {"task": "sentiment"},
    {"task": "news-topic"},
    {"task": "nothing"},
    {"base": "acme/tiny-llama"},
    {"base": "acme/other"},
    {"base": "acme/other", "task": "news-topic"},
    {"method": "lora"},
    {"method": "ia3"},
    {"license": "mit"},
    {"license": "mit", "task": "sentiment"},
    {"author": "ann"},
    {"author": "BOB"},
    {"author": "carol"},
    {"text": "sentiment"},
    {"text": "headlines news"},
    {"labels": ("task:sentiment", "lora")},
    {"labels": ("task:sentiment", "task:news-topic")},
    {"labels": ("license:mit",)},
]


def test_filters(shelf: AnyRegistry, filled: Registry) -> None:
    for wanted in FILTERS:
        page, ours = shelf.search(Query(**wanted)), filled.search(Query(**wanted))
        assert {entry.name for entry in page.entries} == {entry.name for entry in ours.entries}, wanted
        assert page.total == ours.total and page.exact, wanted


@grafts_own
def test_a_page_is_the_same_everywhere(shelf: AnyRegistry, filled: Registry) -> None:
    for query in (Query(), Query(limit=2), Query(offset=3, limit=2), Query(text="news"), Query(limit=0)):
        assert shelf.search(query) == filled.search(query)


def test_pages_and_totals(shelf: AnyRegistry, filled: Registry, kind: str) -> None:
    seen = []
    for offset in (0, 2, 4):
        page = shelf.search(Query(sort="created", offset=offset, limit=2))
        seen += [entry.name for entry in page.entries]
        if kind == "plain" and offset < 4:
            assert not page.exact and page.total == offset + 3  # so many at least
        else:
            assert page.exact and page.total == 6
    assert seen == [entry.name for entry in filled.search(Query(sort="created")).entries]


def test_sorts(shelf: AnyRegistry, filled: Registry, kind: str) -> None:
    for sort in ("updated", "created", "downloads"):
        entries = shelf.search(Query(sort=sort)).entries
        assert [entry.name for entry in entries] == [entry.name for entry in filled.search(Query(sort=sort)).entries]
    for sort in ("size", "name"):
        if kind != "plain":
            assert shelf.search(Query(sort=sort)) == filled.search(Query(sort=sort))
            continue
        with pytest.raises(NotOfferedError, match="can't sort by") as refused:
            shelf.search(Query(sort=sort))
        assert refused.value.status == 501


def test_scores_are_compared_within_one_task(shelf: AnyRegistry, filled: Registry, kind: str) -> None:
    task = filled.add_task("news-topic", "accuracy", EVAL_SET, "")
    for name, value in (("ann/news", 0.5), ("bob/news", 0.7)):
        filled.record_evaluation(Evaluation(task.slug, task.data_hash, "accuracy", value, 1, repo=name))
    if kind == "plain":
        with pytest.raises(NotOfferedError, match="can't sort by 'score'"):
            shelf.search(Query(task="news-topic", sort="score"))
        return
    best = [(entry.name, entry.score) for entry in shelf.search(Query(task="news-topic", sort="score")).entries]
    assert best[:2] == [("bob/news", 0.7), ("ann/news", 0.5)] and {score for _, score in best[2:]} == {None}
    with pytest.raises(GraftError, match="Scores of different tasks can't be compared") as refused:
        shelf.search(Query(sort="score"))
    assert refused.value.status == 400
    assert shelf.search(Query(labels=("task:news-topic",), sort="score")).entries[0].name == "bob/news"


def test_a_base_by_its_fingerprint(shelf: AnyRegistry, filled: Registry, spec: BaseSpec, kind: str) -> None:
    assert names(shelf, base=shelf.base_name(spec)) == names(filled, base=spec.fingerprint) != []
    if kind == "plain":
        with pytest.raises(NotOfferedError, match="by their ids only"):
            shelf.search(Query(base=spec.fingerprint))
    else:
        assert names(shelf, base=spec.fingerprint) == names(shelf, base="acme/tiny-llama")


@grafts_own
def test_queries_that_can_not_be(shelf: AnyRegistry, filled: Registry) -> None:
    for query, said in ((Query(sort="size DESC"), "Can't sort by"), (Query(text="a " * 100), "100 words are too many")):
        with pytest.raises(GraftError, match=said) as refused:
            shelf.search(query)
        assert refused.value.status == 400
    assert names(shelf, labels=tuple(f"label-{number}" for number in range(3000))) == []


# Names


def test_what_is_not_there(shelf: AnyRegistry, filled: Registry, tmp_path: Path) -> None:
    for name, error in (
        ("ann/nothing", RepoNotFoundError),
        ("ann/nothing@v1", RepoNotFoundError),
        ("nothing", RepoNotFoundError),
        ("ann/news@v9", RevisionNotFoundError),
        ("ann/news@" + "0" * 40, RevisionNotFoundError),
        ("ann/empty", RevisionNotFoundError),
    ):
        for ask in (shelf.resolve, lambda name: shelf.pull(name, tmp_path / "out")):
            with pytest.raises(error) as refused:
                ask(name)
            assert type(refused.value) is error and refused.value.status == 404
    assert not (tmp_path / "out").exists()


@grafts_own
def test_a_revision_is_the_same_everywhere(shelf: AnyRegistry, filled: Registry) -> None:
    id = filled.resolve("ann/news").id
    for name in ("ann/news", "ann/news@main", f"ann/news@{id}", f"ann/news@{id[:10]}", "ANN/News"):
        assert shelf.resolve(name) == filled.resolve("ann/news")


@grafts_own
def test_promotions(shelf: AnyRegistry, filled: Registry) -> None:
    head = filled.resolve("ann/news")
    for alias in ("production", "eu/production", "a.b_c-d", "2026"):
        assert shelf.promote("ann/news", alias, why='it\'s best: "ü" & 1/2 % ?#') == head
        assert shelf.resolve(f"ann/news@{alias}") == head
        assert shelf.history("ann/news")[0].why == 'it\'s best: "ü" & 1/2 % ?#'
    assert shelf.resolve("task:news-topic") == shelf.resolve("task:news-topic", base="f" * 64) == head
    assert shelf.promote("task:news-topic", "stable") == shelf.resolve("ann/news@stable") == head
    with pytest.raises(RevisionNotFoundError, match="No adapter of task 'news-topic' is in production on this base"):
        shelf.resolve("task:news-topic", base="e" * 64)


@grafts_own
def test_aliases_that_can_not_be(shelf: AnyRegistry, filled: Registry) -> None:
    for alias in ("a b", "", "/", "a//b", "..", "a?b", "a%2Fb", "ä", "0" * 40, "x" * 101):
        for move in (shelf.promote, shelf.rollback):
            with pytest.raises(GraftError, match="can't name a branch, tag or alias") as refused:
                move("ann/news", alias)
            assert refused.value.status == 400 and type(refused.value) is GraftError
    for ref, error in (
        ("ann/nothing", RepoNotFoundError),
        ("nothing", RepoNotFoundError),
        ("ann/a b", RepoNotFoundError),
        ("ann/news@v9", RevisionNotFoundError),
        ("ann/empty", RevisionNotFoundError),
        ("task:nothing", RevisionNotFoundError),
    ):
        with pytest.raises(error):
            shelf.promote(ref, "production")
    filled.create_ref("ann/news", "tag", "v1")
    with pytest.raises(ConflictError, match="already a tag") as refused:
        shelf.promote("ann/news", "v1")
    assert refused.value.status == 409
    note = Put("a.txt", filled.blobs.put_bytes(b"a"))
    filled.commit("ann/notes", [note], title="x", create=True)
    with pytest.raises(ArtifactError, match="holds no complete adapter"):
        shelf.promote("ann/notes", "production")


@grafts_own
def test_rollback(shelf: AnyRegistry, filled: Registry, tmp_path: Path, lora_folder) -> None:
    first = filled.resolve("ann/news")
    shelf.promote("ann/news", "eu/production")
    with pytest.raises(NotFoundError, match="no earlier revision"):
        shelf.rollback("ann/news", "eu/production")
    shelf.publish(lora_folder(tmp_path / "second", seed=9), "ann/news")
    assert shelf.promote("ann/news", "eu/production") != first
    assert shelf.rollback("ann/news", "eu/production", why="slow") == first == shelf.resolve("ann/news@eu/production")
    assert shelf.history("ann/news")[0].why == "slow"
    with pytest.raises(RepoNotFoundError):
        shelf.rollback("ann/nothing", "production")


@grafts_own
def test_history(shelf: AnyRegistry, filled: Registry, tmp_path: Path, lora_folder, monkeypatch) -> None:
    monkeypatch.setattr("graft.hub.registry.remote.client.MAX_PAGE", 2)
    for number in range(3):
        shelf.publish(lora_folder(tmp_path / str(number), seed=20 + number), "ann/news", tags=[f"v{number}"])
        shelf.promote("ann/news", "production")
    assert shelf.revisions("ann/news") == filled.revisions("ann/news") and len(filled.revisions("ann/news")) == 4
    assert shelf.all_refs("ann/news") == filled.all_refs("ann/news") and len(filled.all_refs("ann/news")) == 5
    assert shelf.history("ann/news") == filled.history("ann/news") and len(filled.history("ann/news")) == 10
    for limit in (1, 2, 3):
        assert shelf.history("ann/news", limit=limit) == filled.history("ann/news")[:limit]
        assert shelf.revisions("ann/news", limit=limit) == filled.revisions("ann/news")[:limit]
    for ask in (shelf.revisions, shelf.all_refs, shelf.history):
        with pytest.raises(RepoNotFoundError):
            ask("ann/nothing")


# Files


def test_pull(shelf: AnyRegistry, there: Registry, adapter: Path, tmp_path: Path) -> None:
    made = there.publish(adapter, "ann/news", tags=["eu/v1"])
    for name in ("ann/news", "ann/news@eu/v1", f"ann/news@{made.id}"):
        out = tmp_path / name.replace("/", "-")
        assert shelf.pull(name, out).id == made.id
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            path.name: path.read_bytes() for path in adapter.iterdir()
        }


def test_lend(shelf: AnyRegistry, there: Registry, adapter: Path) -> None:
    made = there.publish(adapter, "ann/news")
    with shelf.lend(f"ann/news@{made.id}") as folder:
        lent = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert lent == {path.name: path.read_bytes() for path in adapter.iterdir()}
    assert not folder.exists()
    with pytest.raises(NotFoundError), shelf.lend("ann/nothing"):
        pass


# Tasks and scores


@grafts_own
def test_tasks(shelf: AnyRegistry, there: Registry) -> None:
    assert shelf.tasks() == []
    made = shelf.add_task("news-topic", "accuracy", EVAL_SET, "Welches Ressort? ü")
    assert shelf.tasks() == there.tasks() == [made] and shelf.task("news-topic") == made
    assert shelf.task_data("news-topic") == EVAL_SET
    renewed = shelf.add_task("news-topic", "exact_match", EVAL_SET * 2, "")
    assert (renewed.metric, renewed.examples) == ("exact_match", 2) and shelf.tasks() == [renewed]
    assert shelf.task_data("news-topic", made.data_hash) == EVAL_SET and shelf.task_data("news-topic") == EVAL_SET * 2
    with pytest.raises(NotFoundError):
        shelf.task_data("news-topic", "0" * 64)
    owned = shelf.set_task_owners("news-topic", ["bob", "ann"])
    assert set(owned.owners) == {"ann", "bob"} and shelf.task("news-topic") == there.task("news-topic") == owned
    renewed = shelf.add_task("news-topic", "exact_match", EVAL_SET * 2, "", owners=["ann"])
    assert set(renewed.owners) == {"ann"}
    with pytest.raises(GraftError, match="a b"):
        shelf.set_task_owners("news-topic", ["a b"])
    for slug in ("nothing", "No Slug", "a/b"):
        for ask in (shelf.task, shelf.task_data, shelf.leaderboard, lambda slug: shelf.set_task_owners(slug, [])):
            with pytest.raises(NotFoundError, match="There is no task"):
                ask(slug)
    for arguments, error, said in (
        (("No Slug", "accuracy", EVAL_SET), GraftError, "can't name a task"),
        (("untasked", "accuracy", EVAL_SET), GraftError, "adapters without a task"),
        (("news", "rouge", EVAL_SET), GraftError, "Unknown metric"),
        (("news", "accuracy", EVAL_SET + b"{"), DataError, "line 2"),
        (("news", "accuracy", b"\xff\n"), DataError, "utf-8"),
    ):
        with pytest.raises(GraftError, match=said) as refused:
            shelf.add_task(*arguments, "")
        assert type(refused.value) is error and refused.value.status == 400
    assert there.tasks() == [renewed]


@grafts_own
def test_scores(shelf: AnyRegistry, filled: Registry) -> None:
    task = filled.add_task("news-topic", "accuracy", EVAL_SET, "")
    head, other = filled.resolve("ann/news"), filled.resolve("bob/news")
    score = Evaluation(task.slug, task.data_hash, "accuracy", 0.9, 1, repo="ann/news", engine="test", seconds=1.5)
    recorded = shelf.record_evaluation(dataclasses.replace(score, low=0.8, high=1.0, extra={"p": 0.5}))
    assert recorded == shelf.evaluation(recorded.id or 0) == filled.evaluations("ann/news")[0]
    for id in (-1, 0, 999):
        with pytest.raises(NotFoundError):
            shelf.evaluation(id)
    shelf.record_evaluation(dataclasses.replace(score, repo=None, base_fingerprint="f" * 64, value=0.5))
    assert shelf.evaluations("ann/news") == filled.evaluations("ann/news")
    [kept] = shelf.evaluations("ann/news")
    assert (kept.value, kept.low, kept.extra, kept.digest, kept.revision) == (
        0.9,
        0.8,
        {"p": 0.5},
        head.digest,
        head.id,
    )
    board = shelf.leaderboard("news-topic")
    assert board == filled.leaderboard("news-topic") and [row.rank for row in board] == [1, 0]
    assert shelf.leaderboard("news-topic", "acme/tiny-llama") == shelf.leaderboard("news-topic", "f" * 64) == board
    assert shelf.leaderboard("news-topic", "acme/other") == []
    for changed, error, said in (
        ({"digest": other.digest}, ConflictError, "name the revision that was measured"),
        ({"base_fingerprint": "e" * 64}, ConflictError, "another base"),
        ({"revision": other.id}, RevisionNotFoundError, "no revision"),
        ({"repo": "ann/nothing"}, RepoNotFoundError, "no adapter"),
        ({"repo": None}, GraftError, "give one"),
    ):
        with pytest.raises(error, match=said) as refused:
            shelf.record_evaluation(dataclasses.replace(score, **changed))
        assert type(refused.value) is error
    assert len(shelf.evaluations("ann/news")) == 1
    with pytest.raises(RepoNotFoundError):
        shelf.evaluations("ann/nothing")


# What another hub hasn't


@pytest.mark.parametrize("kind", ["plain"], indirect=True)
def test_what_a_plain_hub_has_no_word_for(shelf: AnyRegistry, filled: Registry) -> None:
    score = Evaluation("news-topic", "0" * 64, "accuracy", 0.9, 1, repo="ann/news")
    for ask in (
        lambda: shelf.promote("ann/news", "production"),
        lambda: shelf.promote("task:news-topic", "production"),
        lambda: shelf.rollback("ann/news", "production"),
        lambda: shelf.resolve("task:news-topic"),
        lambda: shelf.pull("task:news-topic", "out"),
        lambda: shelf.revisions("ann/news"),
        lambda: shelf.all_refs("ann/news"),
        lambda: shelf.history("ann/news"),
        lambda: shelf.tasks(),
        lambda: shelf.task("news-topic"),
        lambda: shelf.task_data("news-topic"),
        lambda: shelf.add_task("news-topic", "accuracy", EVAL_SET, ""),
        lambda: shelf.record_evaluation(score),
        lambda: shelf.evaluations("ann/news"),
        lambda: shelf.evaluation(1),
        lambda: shelf.set_task_owners("news-topic", ["ann"]),
        lambda: shelf.leaderboard("news-topic"),
    ):
        with pytest.raises(NotOfferedError, match="not as a graft hub does: only those have") as refused:
            ask()
        assert refused.value.status == 501


def test_how_long_an_answer_may_be_trusted(shelf: AnyRegistry, kind: str) -> None:
    assert shelf.is_far == (kind != "file")
    assert shelf.trusted_s == {"file": 0, "graft": 0.75, "plain": 10}[kind]
