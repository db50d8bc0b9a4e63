"""What must hold between the rows of a registry, as a table of questions whose every answer is a problem.

Foreign keys say what SQLite can; the rest stands here: refs and their history, the listing against what it flattens,
scores against what they were measured on, what tasks serve. The audit checks itself (audit.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from graft.hub.registry.search import LATEST_SCORE
from graft.hub.registry.storage.database import Database

MOST_NAMED = 20  # of one kind, so that a report stays readable


@dataclass(frozen=True)
class Rule:
    """`sql` selects what breaks it; `problem` is filled with a row's columns."""

    problem: str
    sql: str


_REPO = "repos.namespace || '/' || repos.name AS repo"
# What makes the database itself unsound: a copy of it must not be kept or restored.
DAMAGE = (
    Rule(
        "registry.db is damaged: {integrity_check}",
        "SELECT * FROM pragma_integrity_check WHERE integrity_check != 'ok'",
    ),
    Rule(
        "A row of {table} refers to a missing row of {parent}.",
        'SELECT "table", parent FROM pragma_foreign_key_check',
    ),
)
# Rows that contradict each other, in a database that is sound as such.
CONTRADICTIONS = (
    Rule(
        "{repo} is deleted and its {kind} {name} is not: `graft registry gc` takes it away.",
        f"SELECT {_REPO}, kind, refs.name AS name FROM refs JOIN repos ON repos.id = repo_id WHERE deleted_at IS NOT NULL",
    ),
    Rule(
        "{repo}: {kind} {name} leads to {revision_id}, which is no revision of this repo.",
        f"SELECT {_REPO}, kind, refs.name AS name, revision_id FROM refs JOIN repos ON repos.id = refs.repo_id "
        "LEFT JOIN revisions ON revisions.id = revision_id WHERE revisions.repo_id IS NOT refs.repo_id",
    ),
    Rule(
        "{repo}: the alias {name} leads to {revision_id}, which holds no adapter.",
        f"SELECT {_REPO}, refs.name AS name, revision_id FROM refs JOIN repos ON repos.id = repo_id WHERE kind = 'alias' "
        "AND NOT EXISTS (SELECT 1 FROM artifacts WHERE artifacts.revision_id = refs.revision_id)",
    ),
    Rule(
        "{repo}: {kind} {name} leads to {revision_id}, and its history says {new}.",
        f"SELECT {_REPO}, last.kind AS kind, last.name AS name, last.new AS new, revision_id FROM "
        "(SELECT repo_id, kind, name, new, max(id) FROM ref_moves GROUP BY repo_id, kind, name) AS last "
        "JOIN repos ON repos.id = last.repo_id LEFT JOIN refs ON refs.repo_id = last.repo_id AND refs.kind = last.kind "
        "AND refs.name = last.name WHERE deleted_at IS NULL AND last.new IS NOT revision_id",
    ),
    Rule(
        "{repo}: {kind} {name} has no history.",
        f"SELECT {_REPO}, kind, refs.name AS name FROM refs JOIN repos ON repos.id = repo_id WHERE NOT EXISTS (SELECT 1 "
        "FROM ref_moves m WHERE m.repo_id = refs.repo_id AND m.kind = refs.kind AND m.name = refs.name)",
    ),
    Rule(
        "{repo}: a move of {kind} {name} begins at {old}, and the one before ended at {before}.",
        f"SELECT {_REPO}, kind, m.name AS name, old, before FROM (SELECT *, lag(new) OVER (PARTITION BY repo_id, kind, name "
        "ORDER BY id) AS before FROM ref_moves) AS m JOIN repos ON repos.id = repo_id WHERE old IS NOT before",
    ),
    Rule(
        "{repo}: the revision {id} comes after {parent}, which is no revision of this repo.",
        f"SELECT {_REPO}, mine.id AS id, mine.parent AS parent FROM revisions AS mine JOIN repos ON repos.id = mine.repo_id "
        "LEFT JOIN revisions AS older ON older.id = mine.parent "
        "WHERE mine.parent IS NOT NULL AND older.repo_id IS NOT mine.repo_id",
    ),
    Rule(
        "{repo}: revision {revision_id} has lost its files.",
        f"SELECT {_REPO}, revision_id FROM artifacts JOIN revisions ON revisions.id = revision_id "
        "JOIN repos ON repos.id = repo_id "
        "WHERE NOT EXISTS (SELECT 1 FROM files WHERE files.revision_id = artifacts.revision_id)",
    ),
    Rule(
        "{repo} is renamed and answers nevertheless.",
        f"SELECT {_REPO} FROM repos WHERE moved_to IS NOT NULL AND deleted_at IS NULL",
    ),
    Rule(
        "{repo} is not listed.",
        f"SELECT {_REPO} FROM live_repos AS repos LEFT JOIN listing ON repo_id = id WHERE repo_id IS NULL",
    ),
    Rule(
        "{repo} is deleted or withdrawn, and still listed.",
        f"SELECT {_REPO} FROM repos JOIN listing ON repo_id = id WHERE repos.id NOT IN (SELECT id FROM live_repos)",
    ),
    Rule(
        "{repo}: its listing is not of its main revision.",
        f"SELECT {_REPO} FROM listing JOIN repos ON repos.id = listing.repo_id LEFT JOIN refs ON refs.repo_id = repos.id "
        "AND kind = 'branch' AND refs.name = 'main' WHERE coalesce(refs.revision_id, '') != listing.revision_id",
    ),
    Rule(
        "{repo} is listed under another name, or as public where it is private.",
        f"SELECT {_REPO} FROM listing JOIN repos ON repos.id = repo_id WHERE listing.private != repos.private "
        "OR listing.namespace != repos.namespace OR listing.name != repos.name",
    ),
    Rule(
        "{repo} counts {mine} downloads, and its listing {listed}.",
        f"SELECT {_REPO}, repos.downloads AS mine, listing.downloads AS listed FROM listing "
        "JOIN repos ON repos.id = repo_id WHERE mine != listed",
    ),
    Rule(
        "{repo} is listed with other facts than its adapter's.",
        f"SELECT {_REPO} FROM listing JOIN repos ON repos.id = repo_id LEFT JOIN artifacts USING (revision_id) WHERE "
        "listing.digest IS NOT artifacts.digest OR listing.parameters IS NOT artifacts.parameters "
        "OR (artifacts.task IS NOT NULL AND listing.task != artifacts.task)",
    ),
    Rule(
        "{repo} is listed with the score {score}, and its latest is {latest}.",
        f"SELECT * FROM (SELECT {_REPO}, listing.score AS score, {LATEST_SCORE} AS latest FROM listing "
        "JOIN repos ON repos.id = repo_id) WHERE score IS NOT latest",
    ),
    Rule(
        "{counted} adapters are counted as of {task}, {base}, {method} and {license}, and {listed} are listed.",
        "SELECT task, base, method, license, sum(counts) AS counted, sum(lists) AS listed FROM "
        "(SELECT private, task, base, method, license, n AS counts, 0 AS lists FROM facet_counts UNION ALL "
        "SELECT private, task, base, method, license, 0, 1 FROM listing) "
        "GROUP BY private, task, base, method, license HAVING counted != listed",
    ),
    Rule(
        "{repo} can't be found by its text: the index knows it as {name}.",
        f"SELECT {_REPO}, texts.name AS name FROM listing JOIN repos ON repos.id = repo_id LEFT JOIN texts "
        "ON texts.rowid = repo_id WHERE texts.name IS NOT repos.namespace || '/' || repos.name",
    ),
    Rule(
        "The index finds {name}, which is not listed.",
        "SELECT name FROM texts WHERE rowid NOT IN (SELECT repo_id FROM listing)",
    ),
    Rule(
        "{repo} has labels and is not listed.",
        f"SELECT DISTINCT {_REPO} FROM labels JOIN repos ON repos.id = repo_id WHERE repo_id NOT IN (SELECT repo_id FROM listing)",
    ),
    Rule(
        "The evaluation {id} of {repo} is of {revision_id}, which is no revision of this repo.",
        f"SELECT {_REPO}, evaluations.id AS id, revision_id FROM evaluations JOIN repos ON repos.id = evaluations.repo_id "
        "LEFT JOIN revisions ON revisions.id = revision_id WHERE revisions.repo_id IS NOT evaluations.repo_id",
    ),
    Rule(
        "The evaluation {id} of {repo} is of the weights {digest}, and its revision holds others.",
        f"SELECT {_REPO}, evaluations.id AS id, evaluations.digest AS digest FROM evaluations "
        "JOIN repos ON repos.id = repo_id JOIN artifacts USING (revision_id) WHERE evaluations.digest IS NOT artifacts.digest",
    ),
    Rule(
        "The evaluation {id} is of the task {task}, which is not here.",
        "SELECT id, task FROM evaluations WHERE source = 'graft' AND task NOT IN (SELECT slug FROM tasks)",
    ),
    Rule(
        "The evaluation {id} was measured on data that is not here ({data_hash}).",
        "SELECT id, data_hash FROM evaluations WHERE source = 'graft' AND data_hash NOT IN (SELECT sha256 FROM blobs)",
    ),
    Rule(
        "task:{task} serves {revision_id}, which is no revision of {repo}.",
        f"SELECT {_REPO}, task, task_moves.revision_id AS revision_id FROM task_moves "
        "JOIN live_repos AS repos ON repos.id = task_moves.repo_id "
        "LEFT JOIN revisions ON revisions.id = task_moves.revision_id "
        "WHERE task_moves.revision_id IS NOT NULL AND revisions.repo_id IS NOT task_moves.repo_id",
    ),
)


def find_broken_rows(db: Database, rules: tuple[Rule, ...]) -> Iterator[str]:
    """A problem a row that breaks a rule, the first `MOST_NAMED` of each."""
    for rule in rules:
        rows = [dict(row) for row in db.execute(rule.sql)]
        yield from (rule.problem.format(**row) for row in rows[:MOST_NAMED])
        if len(rows) > MOST_NAMED:
            yield f"{len(rows) - MOST_NAMED:,} more problems like the last one."
