"""`registry check` names whatever contradicts itself, and finds nothing in a registry that nobody laid hands on."""

import sqlite3
from pathlib import Path

import pytest

from graft.hub.registry.commits.changes import Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.row_checks import CONTRADICTIONS, MOST_NAMED
from graft.hub.registry.registry import Registry

TASK = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def full(registry: Registry, adapter: Path, tmp_path: Path, lora_folder) -> Registry:
    """One of everything."""
    task = registry.add_task("news-topic", "accuracy", TASK, "")
    registry.publish(adapter, "ann/news", tags=["v1"])
    registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/news", private=True)
    registry.promote("ann/news@v1", "production")
    registry.promote("ann/news", "production")
    registry.rollback("ann/news", "production")
    registry.create_ref("ann/news", "branch", "try", "v1")
    registry.commit("ann/news", [Put("a.txt", registry.blobs.put_bytes(b"a"))], title="A branch", branch="try")
    registry.create_ref("ann/news", "tag", "gone")
    registry.delete_ref("ann/news", "tag", "gone")
    registry.create_ref("ann/news", "tag", "gone", "v1")
    registry.record_evaluation(
        Evaluation(task="news-topic", data_hash=task.data_hash, metric="accuracy", value=0.5, n=1, repo="ann/news")
    )
    registry.record_evaluation(
        Evaluation(
            task="news-topic", data_hash=task.data_hash, metric="accuracy", value=0.2, n=1, base_fingerprint="f" * 64
        )
    )
    registry.publish(adapter, "bob/old")
    registry.move_repo("bob/old", "bob/new")
    registry.publish(adapter, "bob/deleted")
    registry.delete_repo("bob/deleted")
    registry.create_repo("bob/empty", private=True)
    registry.set_private("bob/empty", False)
    registry.pull("ann/news", tmp_path / "pulled")
    registry.add_task("news-topic", "accuracy", TASK + TASK, "")
    return registry


def test_a_registry_with_one_of_everything_is_sound(full: Registry) -> None:
    report = check(full)
    assert report.problems == () and report.unreferred == 0 and report.bytes > 0


NEWS = "(SELECT id FROM repos WHERE name = 'news')"
MAIN = f"(SELECT revision_id FROM refs WHERE repo_id = {NEWS} AND name = 'main')"
OTHER = (
    "(SELECT revision_id FROM refs JOIN repos ON repos.id = repo_id WHERE repos.name = 'new' AND refs.name = 'main')"
)
SPOILT = {
    "{repo} is deleted and its": f"UPDATE repos SET deleted_at = 'x' WHERE id = {NEWS}",
    "{repo}: {kind} {name} leads to {revision_id}, which": f"UPDATE refs SET revision_id = {OTHER} WHERE name = 'v1'",
    "{repo}: the alias": "DELETE FROM artifacts",
    "{repo}: {kind} {name} leads to {revision_id}, and": f"UPDATE refs SET revision_id = {MAIN} WHERE name = 'v1'",
    "{repo}: {kind} {name} has no": "DELETE FROM ref_moves WHERE name = 'v1'",
    "{repo}: a move of": "DELETE FROM ref_moves WHERE id = (SELECT min(id) FROM ref_moves WHERE name = 'production')",
    "{repo}: the revision": f"UPDATE revisions SET parent = {OTHER} WHERE id = {MAIN}",
    "{repo}: revision": f"DELETE FROM files WHERE revision_id = {MAIN}",
    "{repo} is renamed": "UPDATE repos SET deleted_at = NULL WHERE moved_to IS NOT NULL",
    "{repo} is not listed": f"DELETE FROM listing WHERE repo_id = {NEWS}",
    "{repo} is deleted or withdrawn": f"UPDATE repos SET deleted_at = 'x' WHERE id = {NEWS}",
    "{repo}: its listing": f"UPDATE listing SET revision_id = {OTHER} WHERE repo_id = {NEWS}",
    "{repo} is listed under": f"UPDATE listing SET private = 1 WHERE repo_id = {NEWS}",
    "{repo} counts": f"UPDATE repos SET downloads = 7 WHERE id = {NEWS}",
    "{repo} is listed with other": f"UPDATE listing SET digest = 'x' WHERE repo_id = {NEWS}",
    "{repo} is listed with the score": f"UPDATE listing SET score = 0.9 WHERE repo_id = {NEWS}",
    "{counted} adapters": "UPDATE facet_counts SET n = n + 1",
    "{repo} can't be found": f"DELETE FROM texts WHERE rowid = {NEWS}",
    "The index finds": "INSERT INTO texts (rowid, name, labels, card) VALUES (999, 'x/y', '', '')",
    "{repo} has labels": f"DELETE FROM listing WHERE repo_id = {NEWS}",
    "The evaluation {id} of {repo} is of {revision_id}": f"UPDATE evaluations SET revision_id = {OTHER} WHERE repo_id = {NEWS}",
    "The evaluation {id} of {repo} is of the weights": f"UPDATE evaluations SET digest = 'x' WHERE repo_id = {NEWS}",
    "The evaluation {id} is of the task": "DELETE FROM tasks",
    "The evaluation {id} was measured": "UPDATE evaluations SET data_hash = 'x'",
    "task:{task} serves": f"UPDATE task_moves SET revision_id = {OTHER} WHERE repo_id = {NEWS}",
}


def test_every_rule_is_tried() -> None:
    assert all(any(rule.problem.startswith(start) for start in SPOILT) for rule in CONTRADICTIONS)
    assert len(SPOILT) == len(CONTRADICTIONS)


@pytest.mark.parametrize("start", SPOILT)
def test_what_contradicts_itself_is_named(full: Registry, start: str) -> None:
    [rule] = [rule for rule in CONTRADICTIONS if rule.problem.startswith(start)]
    full.db.execute("PRAGMA foreign_keys = OFF")
    full.db.execute(SPOILT[start])
    rows = [dict(row) for row in full.db.execute(rule.sql)]
    assert rows and {rule.problem.format(**row) for row in rows} <= set(check(full).problems)


def test_a_missing_row_that_another_refers_to_is_named(full: Registry) -> None:
    full.db.execute("PRAGMA foreign_keys = OFF")
    full.db.execute("DELETE FROM users")
    full.db.execute("INSERT INTO members VALUES ('ann', 1)")
    assert "A row of members refers to a missing row of users." in check(full).problems


def test_a_damaged_database_is_a_problem_and_no_traceback(full: Registry) -> None:
    full.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    full.close()
    data = bytearray(full.path.read_bytes())
    for start in range(4096 * 8, len(data) - 4096, 4096 * 3):
        data[start : start + 2000] = b"\xff" * 2000
    full.path.write_bytes(data)
    assert any("damaged" in problem for problem in check(Registry(full.path)).problems)


def test_a_long_list_is_cut(full: Registry) -> None:
    rows = [("x", "data", f"{number}") for number in range(MOST_NAMED + 5)]
    full.db.conn.executemany(
        "INSERT INTO evaluations (task, data_hash, metric, value, n, engine, source, extra, who, created_at) "
        "VALUES (?, ?, 'accuracy', 0, 1, '', 'graft', '{}', ?, '')",
        rows,
    )
    problems = check(full).problems
    assert "5 more problems like the last one." in problems and len(problems) == 2 * (MOST_NAMED + 1)


def test_what_is_written_meanwhile_is_no_problem(full: Registry, tmp_path: Path) -> None:
    """The tables are read at one moment."""
    other = sqlite3.connect(full.path, isolation_level=None)
    for _ in range(20):
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE repos SET downloads = downloads + 1")
        other.execute("UPDATE listing SET downloads = downloads + 1")
        assert check(full).problems == ()
        other.execute("COMMIT")
    assert check(full).problems == ()
