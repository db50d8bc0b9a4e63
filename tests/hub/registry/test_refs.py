"""Names that move, against repos that are deleted or moved meanwhile: what a transaction depends on is looked up inside."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.hub.errors import NotFoundError, RevisionNotFoundError
from graft.hub.registry import registry as registries
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry

TASK = b'{"prompt": "a", "completion": "b"}\n'


def score(registry: Registry) -> None:
    task = registry.task("news-topic")
    registry.record_evaluation(
        Evaluation(
            task=task.slug, data_hash=task.data_hash, metric=task.metric, value=0.5, n=task.examples, repo="ann/news"
        )
    )


CHANGES: dict[str, Callable[[Registry], object]] = {
    "promote": lambda registry: registry.promote("ann/news@v1", "production"),
    "rollback": lambda registry: registry.rollback("ann/news", "production"),
    "create_ref": lambda registry: registry.create_ref("ann/news", "tag", "new", "v1"),
    "delete_ref": lambda registry: registry.delete_ref("ann/news", "tag", "v1"),
    "set_private": lambda registry: registry.set_private("ann/news", True),
    "move_repo": lambda registry: registry.move_repo("ann/news", "ann/newer"),
    "delete_repo": lambda registry: registry.delete_repo("ann/news"),
    "record_evaluation": score,
}


@pytest.fixture
def news(registry: Registry, adapter: Path, tmp_path: Path, lora_folder) -> Registry:
    registry.add_task("news-topic", "accuracy", TASK, "")
    registry.publish(adapter, "ann/news", tags=["v1"])
    registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/news", tags=["v2"])
    registry.promote("ann/news@v1", "production")
    registry.promote("ann/news@v2", "production")
    return registry


@pytest.mark.parametrize("change", CHANGES)
def test_a_repo_deleted_just_before_the_transaction(news: Registry, change: str, monkeypatch) -> None:
    """Whatever was looked up before the write lock is stale: the change finds no repo, and nothing is left of it."""
    begin = registries.write_transaction
    inside = threading.local()

    def begin_late(db):
        if not getattr(inside, "deleting", False):
            inside.deleting = True
            news.delete_repo("ann/news")
        return begin(db)

    monkeypatch.setattr(registries, "write_transaction", begin_late)
    with pytest.raises(NotFoundError):
        CHANGES[change](news)
    monkeypatch.undo()
    assert check(news).problems == ()
    with pytest.raises(NotFoundError):
        news.resolve("task:news-topic")
    collect(news, grace_s=0)
    assert check(news).problems == () and check(news).unreferred == 0


def test_an_alias_that_an_older_graft_left_on_a_deleted_repo(news: Registry) -> None:
    """It is named by check, resolves to nothing, and goes with the next gc, which used to die of it for ever."""
    revision = news.resolve("ann/news@v2").id
    repo = news.repo("ann/news")
    news.delete_repo("ann/news")
    news.db.execute("INSERT INTO refs VALUES (?, 'alias', 'production', ?)", [repo.id, revision])
    assert check(news).problems == (
        "ann/news is deleted and its alias production is not: `graft registry gc` takes it away.",
    )
    with pytest.raises(RevisionNotFoundError):
        news.resolve("task:news-topic")
    assert collect(news, grace_s=0).revisions == 2
    assert check(news).problems == ()


def test_a_rollback_skips_promotions_that_changed_nothing(news: Registry) -> None:
    first, second = news.resolve("ann/news@v1"), news.resolve("ann/news@v2")
    for _ in range(2):
        news.promote("ann/news@v2", "production", who="ann", why="once more")
    assert [move.new for move in news.history("ann/news") if move.why == "once more"] == [second.id] * 2
    assert news.rollback("ann/news", "production") == first == news.resolve("ann/news@production")
    news.promote("ann/news@v1", "production")
    assert news.rollback("ann/news", "production") == second  # undoes the rollback
    assert check(news).problems == ()


def test_there_is_nothing_before_the_first_promotion(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")
    for _ in range(2):
        registry.promote("ann/news", "production")
    with pytest.raises(RevisionNotFoundError, match="no earlier revision"):
        registry.rollback("ann/news", "production")


def test_promoting_again_is_what_the_task_follows(news: Registry, tmp_path: Path, lora_folder) -> None:
    other = news.publish(lora_folder(tmp_path / "other", seed=9), "bob/news")
    news.promote("bob/news", "production")
    assert news.resolve("task:news-topic") == other
    again = news.promote("ann/news@v2", "production")
    assert news.resolve("task:news-topic") == again
