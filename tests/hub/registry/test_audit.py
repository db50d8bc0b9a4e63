"""The audit only grows: the tables refuse changes, and what got around them is found."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from graft.hub.cli.main import main
from graft.hub.registry import audit
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry


@pytest.fixture
def busy(registry: Registry, adapter: Path) -> Registry:
    """A registry in which some things were done."""
    registry.publish(adapter, "ann/news", user="ann")
    registry.promote("ann/news", "production", who="bob")
    registry.set_private("ann/news", True, user="ann")
    return registry


def force(registry: Registry, statement: str) -> None:
    """As somebody does who writes to the file itself."""
    db = sqlite3.connect(registry.path)
    for trigger in ("audit_no_update", "audit_no_delete"):
        db.execute(f"DROP TRIGGER {trigger}")
    db.execute(statement)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET who = 'eve'", "DELETE FROM audit", "DELETE FROM audit WHERE id = 1"]
)
def test_the_tables_refuse_to_forget(busy: Registry, statement: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="only grows"):
        busy.db.execute(statement)
    assert list(audit.verify(busy.db)) == []


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit SET who = 'eve' WHERE id = 2", 2),
        ("UPDATE audit SET detail = '' WHERE action = 'commit'", 3),
        ("DELETE FROM audit WHERE id = 2", 3),
        ("DELETE FROM audit WHERE id = 1", 2),
        ("INSERT INTO audit VALUES (99, '2026', 'eve', 'promote', 'ann/news@production', '', 'f')", 99),
    ],
)
def test_what_got_around_them_is_found(busy: Registry, statement: str, broken: int) -> None:
    force(busy, statement)
    [problem] = check(busy).problems
    assert f"audit's entry {broken} " in problem
    done = CliRunner().invoke(main, ["registry", "check", "--registry", str(busy.path)])
    assert done.exit_code == 1 and f"entry {broken} " in done.output


def test_a_head_that_was_kept_finds_a_chain_that_was_cut_or_forged(busy: Registry) -> None:
    kept = audit.head(busy.db)
    busy.set_private("ann/news", False, user="ann")
    words = ["registry", "check", "--registry", str(busy.path), "--audit-head", kept]
    assert CliRunner().invoke(main, words).exit_code == 0
    force(busy, "DELETE FROM audit WHERE id > 3")
    assert check(busy).problems == ()  # shorter, and sound in itself
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1 and f"never had the head {kept}" in done.output


def test_a_backup_prints_the_head(busy: Registry, tmp_path: Path) -> None:
    words = ["registry", "backup", str(tmp_path / "backup"), "--registry", str(busy.path)]
    assert json.loads(CliRunner().invoke(main, [*words, "--json"]).output)["audit_head"] == audit.head(busy.db)
    assert "audit_head" in CliRunner().invoke(main, words).output


def test_it_is_listed(busy: Registry) -> None:
    words = ["hub", "audit", "--registry", str(busy.path)]
    entries = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    assert [entry["action"] for entry in entries][:3] == ["repo.private", "promote", "task.promote"]
    mine = json.loads(CliRunner().invoke(main, [*words, "--json", "--who", "bob", "--limit", "1"]).output)
    assert [(entry["who"], entry["action"]) for entry in mine] == [("bob", "promote")]
    assert "repo.create" in CliRunner().invoke(main, [*words, "--subject", "ann/news"]).output


def test_writers_at_once_make_one_chain(busy: Registry) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: busy.create_repo(f"w{number}/x", user=f"w{number}"), range(16)))
    assert list(audit.verify(busy.db)) == [] and len(audit.entries(busy.db, limit=16)) == 16
