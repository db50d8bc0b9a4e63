"""The tables of `registry.db`, as numbered migrations, and how a connection to them is opened.

Knows SQLite only: no adapters, no HTTP. A released migration is never edited; a change is a new `mNNN_` function.
Three habits keep the data true: foreign keys are on, `synchronous` stays FULL (an acknowledged commit survives a
power cut), and every write runs inside `write_transaction()`, because a deferred transaction that turns into a write
under concurrency fails at once with "database is locked", whatever the busy timeout.
"""

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.hub.registry.storage.database import Database, Migrations

# Of the file that are read where the system keeps them, instead of a call a page; the most that SQLite takes.
MAPPED_BYTES = 1 << 31
BUSY_TIMEOUT_S = 30.0

_TURN = threading.RLock()

migrations = Migrations("graft")


@migrations()
def m001_people(db: Database) -> None:
    """Users, their hashed tokens, the namespaces they share, and what everybody wrote when."""
    _run(
        db,
        """CREATE TABLE users (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, created_at TEXT NOT NULL)""",
        """CREATE TABLE tokens (
            id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id),
            name TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, scope TEXT NOT NULL CHECK (scope IN ('read','write','admin')),
            created_at TEXT NOT NULL, revoked_at TEXT)""",
        """CREATE TABLE members (
            namespace TEXT NOT NULL COLLATE NOCASE, user_id INTEGER NOT NULL REFERENCES users(id),
            PRIMARY KEY (namespace, user_id)) WITHOUT ROWID""",
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY, at TEXT NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL,
            subject TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '')""",
        "CREATE INDEX audit_subject ON audit(subject, id)",
        "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    )


@migrations()
def m002_repos(db: Database) -> None:
    """Repos (their names are never issued twice: a deleted row stays), immutable revisions, movable refs, blobs."""
    _run(
        db,
        "CREATE TABLE bases (fingerprint TEXT PRIMARY KEY, id TEXT NOT NULL, manifest TEXT NOT NULL, created_at TEXT NOT NULL)",
        "CREATE INDEX bases_id ON bases(id)",
        """CREATE TABLE repos (
            id INTEGER PRIMARY KEY, namespace TEXT NOT NULL COLLATE NOCASE, name TEXT NOT NULL COLLATE NOCASE,
            private INTEGER NOT NULL DEFAULT 0, disabled TEXT, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
            deleted_at TEXT, moved_to INTEGER REFERENCES repos(id), downloads INTEGER NOT NULL DEFAULT 0,
            UNIQUE (namespace, name))""",
        """CREATE TABLE blobs (
            sha256 TEXT PRIMARY KEY, git_oid TEXT NOT NULL, size INTEGER NOT NULL, created_at TEXT NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE revisions (
            id TEXT PRIMARY KEY, repo_id INTEGER NOT NULL REFERENCES repos(id), parent TEXT,
            author TEXT NOT NULL, title TEXT NOT NULL, message TEXT NOT NULL, created_at TEXT NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX revisions_repo ON revisions(repo_id, created_at)",
        """CREATE TABLE files (
            revision_id TEXT NOT NULL REFERENCES revisions(id) ON DELETE CASCADE, path TEXT NOT NULL,
            sha256 TEXT NOT NULL REFERENCES blobs(sha256), changed_in TEXT NOT NULL,
            PRIMARY KEY (revision_id, path)) WITHOUT ROWID""",
        "CREATE INDEX files_sha256 ON files(sha256)",
        """CREATE TABLE refs (
            repo_id INTEGER NOT NULL REFERENCES repos(id), kind TEXT NOT NULL CHECK (kind IN ('branch','tag','alias')),
            name TEXT NOT NULL, revision_id TEXT REFERENCES revisions(id), PRIMARY KEY (repo_id, kind, name)) WITHOUT ROWID""",
        "CREATE INDEX refs_revision ON refs(revision_id)",
        """CREATE TABLE ref_moves (
            id INTEGER PRIMARY KEY, repo_id INTEGER NOT NULL REFERENCES repos(id), kind TEXT NOT NULL, name TEXT NOT NULL,
            old TEXT, new TEXT, who TEXT NOT NULL, why TEXT NOT NULL, at TEXT NOT NULL)""",
        "CREATE INDEX ref_moves_ref ON ref_moves(repo_id, kind, name, id)",
    )


@migrations()
def m003_artifacts(db: Database) -> None:
    """What was found in a revision's adapter, and one row a repo for browsing: its `main`, flattened and indexed."""
    _run(
        db,
        """CREATE TABLE artifacts (
            revision_id TEXT PRIMARY KEY REFERENCES revisions(id) ON DELETE CASCADE, digest TEXT NOT NULL,
            method TEXT NOT NULL, variant TEXT NOT NULL, task TEXT NOT NULL, base_id TEXT, base_fingerprint TEXT,
            parameters INTEGER NOT NULL, bytes INTEGER NOT NULL, max_rank INTEGER, dtype TEXT NOT NULL,
            config TEXT NOT NULL, tensors TEXT NOT NULL, provenance TEXT NOT NULL, card TEXT NOT NULL, warnings TEXT NOT NULL)""",
        "CREATE INDEX artifacts_digest ON artifacts(digest)",
        """CREATE TABLE listing (
            repo_id INTEGER PRIMARY KEY REFERENCES repos(id) ON DELETE CASCADE, revision_id TEXT NOT NULL, digest TEXT,
            private INTEGER NOT NULL, namespace TEXT NOT NULL COLLATE NOCASE, task TEXT NOT NULL, base TEXT NOT NULL,
            method TEXT NOT NULL, license TEXT NOT NULL, parameters INTEGER, bytes INTEGER NOT NULL, score REAL,
            downloads INTEGER NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL)""",
        "CREATE INDEX listing_facets ON listing(private, task, base, method, license)",
        "CREATE INDEX listing_updated ON listing(updated_at)",
        "CREATE INDEX listing_created ON listing(created_at)",
        "CREATE INDEX listing_downloads ON listing(downloads)",
        "CREATE INDEX listing_score ON listing(score)",
        "CREATE INDEX listing_task ON listing(task, base)",
        """CREATE TABLE labels (
            label TEXT NOT NULL, repo_id INTEGER NOT NULL REFERENCES repos(id) ON DELETE CASCADE,
            PRIMARY KEY (label, repo_id)) WITHOUT ROWID""",
        "CREATE INDEX labels_repo ON labels(repo_id)",
        "CREATE VIRTUAL TABLE texts USING fts5(name, labels, card, tokenize='porter unicode61')",
    )


@migrations()
def m004_tasks(db: Database) -> None:
    """Tasks with their evaluation set, and every score with the data it was measured on."""
    _run(
        db,
        """CREATE TABLE tasks (
            slug TEXT PRIMARY KEY, metric TEXT NOT NULL, description TEXT NOT NULL,
            data_hash TEXT NOT NULL REFERENCES blobs(sha256), examples INTEGER NOT NULL,
            created_at TEXT NOT NULL, updated_at TEXT NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE evaluations (
            id INTEGER PRIMARY KEY, repo_id INTEGER REFERENCES repos(id), revision_id TEXT, digest TEXT,
            base_fingerprint TEXT, task TEXT NOT NULL, data_hash TEXT NOT NULL, metric TEXT NOT NULL, value REAL NOT NULL,
            n INTEGER NOT NULL, low REAL, high REAL, seconds REAL, engine TEXT NOT NULL, source TEXT NOT NULL
            CHECK (source IN ('graft','self-reported')), extra TEXT NOT NULL, who TEXT NOT NULL, created_at TEXT NOT NULL)""",
        "CREATE INDEX evaluations_repo ON evaluations(repo_id, id)",
        "CREATE INDEX evaluations_task ON evaluations(task, data_hash, base_fingerprint)",
        "CREATE INDEX evaluations_digest ON evaluations(digest, task, data_hash)",
    )


@migrations()
def m005_listed_names(db: Database) -> None:
    """A repo's short name in its listing, so that a page of many is found without looking anything else up."""
    _run(
        db,
        "ALTER TABLE listing ADD COLUMN name TEXT NOT NULL DEFAULT ''",
        "UPDATE listing SET name = (SELECT name FROM repos WHERE repos.id = repo_id)",
        "CREATE INDEX listing_name ON listing(namespace, name)",
    )


@migrations()
def m006_uploads(db: Database) -> None:
    """Whose bytes came by LFS and wait for their commit: nobody else may commit them by their hash alone."""
    _run(
        db,
        """CREATE TABLE uploads (
            sha256 TEXT NOT NULL, who TEXT NOT NULL COLLATE NOCASE, created_at TEXT NOT NULL,
            PRIMARY KEY (sha256, who)) WITHOUT ROWID""",
    )


@migrations()
def m007_access(db: Database) -> None:
    """Tokens with a name, an end and limits; sessions; quotas, and who brought what; the repos that are there at all."""
    _run(
        db,
        """CREATE TABLE tokens_new (
            id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL REFERENCES users(id), name TEXT NOT NULL,
            hash TEXT NOT NULL UNIQUE, scope TEXT NOT NULL CHECK (scope IN ('read','write','evaluator','admin')),
            limits TEXT, created_at TEXT NOT NULL, last_used_at TEXT, expires_at TEXT, revoked_at TEXT)""",
        # Tokens used to have the same name all; now they are revoked by it.
        """INSERT INTO tokens_new (id, user_id, name, hash, scope, created_at, revoked_at)
            SELECT id, user_id, CASE WHEN EXISTS (SELECT 1 FROM tokens o WHERE o.user_id = t.user_id AND o.name = t.name
            AND o.id != t.id) THEN name || '-' || id ELSE name END, hash, scope, created_at, revoked_at FROM tokens t""",
        "DROP TABLE tokens",
        "ALTER TABLE tokens_new RENAME TO tokens",
        "CREATE INDEX tokens_user ON tokens(user_id)",
        """CREATE TABLE sessions (
            hash TEXT PRIMARY KEY, token_id INTEGER NOT NULL REFERENCES tokens(id), created_at TEXT NOT NULL,
            expires_at TEXT NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE quotas (
            user_id INTEGER PRIMARY KEY REFERENCES users(id), bytes INTEGER, repos INTEGER, requests INTEGER)""",
        """CREATE TABLE reservations (
            key TEXT PRIMARY KEY, who TEXT NOT NULL COLLATE NOCASE, bytes INTEGER NOT NULL, created_at TEXT NOT NULL)
            WITHOUT ROWID""",
        "CREATE INDEX reservations_who ON reservations(who)",
        "ALTER TABLE uploads ADD COLUMN size INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX uploads_who ON uploads(who, size)",
        "ALTER TABLE blobs ADD COLUMN who TEXT COLLATE NOCASE",
        """UPDATE blobs SET who = (SELECT author FROM files JOIN revisions ON revisions.id = revision_id
            WHERE files.sha256 = blobs.sha256 ORDER BY revisions.created_at LIMIT 1)""",
        "CREATE INDEX blobs_who ON blobs(who, size)",
        # What a revision takes in the tables themselves, beside its files.
        "ALTER TABLE revisions ADD COLUMN row_bytes INTEGER NOT NULL DEFAULT 0",
        """UPDATE revisions SET row_bytes = length(title) + length(message) + coalesce((SELECT length(config) + length(tensors)
            + length(provenance) + length(card) FROM artifacts WHERE revision_id = revisions.id), 0)""",
        "CREATE INDEX revisions_author ON revisions(author COLLATE NOCASE, row_bytes)",
        "CREATE INDEX audit_who ON audit(who COLLATE NOCASE)",
        "ALTER TABLE repos ADD COLUMN created_by TEXT COLLATE NOCASE",
        """UPDATE repos SET created_by = (SELECT who FROM audit WHERE action = 'repo.create'
            AND subject = repos.namespace || '/' || repos.name ORDER BY audit.id DESC LIMIT 1)""",
        "CREATE INDEX repos_created_by ON repos(created_by)",
        "CREATE VIEW live_repos AS SELECT * FROM repos WHERE deleted_at IS NULL AND disabled IS NULL",
    )


@migrations()
def m008_trust(db: Database) -> None:
    """Whose a task is and what it serves, its data of all times, what a score was measured with, and manifests that count
    for their publisher alone."""
    _run(
        db,
        "CREATE TABLE task_owners (task TEXT NOT NULL REFERENCES tasks(slug), namespace TEXT NOT NULL COLLATE NOCASE, "
        "PRIMARY KEY (task, namespace)) WITHOUT ROWID",
        """CREATE TABLE task_data (
            task TEXT NOT NULL REFERENCES tasks(slug), data_hash TEXT NOT NULL, examples INTEGER NOT NULL,
            created_at TEXT NOT NULL, PRIMARY KEY (task, data_hash)) WITHOUT ROWID""",
        "INSERT INTO task_data SELECT slug, data_hash, examples, updated_at FROM tasks",
        # What `task:T` serves, by repo and in order: as it was, the last promotion of each repo to production.
        """CREATE TABLE task_moves (
            id INTEGER PRIMARY KEY, task TEXT NOT NULL, repo_id INTEGER NOT NULL REFERENCES repos(id), revision_id TEXT,
            move_id INTEGER NOT NULL REFERENCES ref_moves(id))""",
        """INSERT INTO task_moves (task, repo_id, revision_id, move_id)
            SELECT artifacts.task, refs.repo_id, refs.revision_id, ref_moves.id FROM refs
            JOIN artifacts ON artifacts.revision_id = refs.revision_id
            JOIN ref_moves ON ref_moves.id = (SELECT max(id) FROM ref_moves m WHERE m.repo_id = refs.repo_id
            AND m.kind = 'alias' AND m.name = refs.name)
            WHERE refs.kind = 'alias' AND refs.name = 'production' ORDER BY ref_moves.id""",
        "CREATE INDEX task_moves_task ON task_moves(task, repo_id, id)",
        "ALTER TABLE evaluations ADD COLUMN predictions_hash TEXT",
        """CREATE TABLE base_claims (
            who TEXT NOT NULL COLLATE NOCASE, fingerprint TEXT NOT NULL, id TEXT NOT NULL, manifest TEXT NOT NULL,
            created_at TEXT NOT NULL, PRIMARY KEY (who, fingerprint))""",
    )


@migrations()
def m009_audit_chain(db: Database) -> None:
    """The audit as a chain of hashes, and closed to all but appending."""
    db.execute("ALTER TABLE audit ADD COLUMN hash TEXT NOT NULL DEFAULT ''")
    head = ""
    for id, *deed in db.execute("SELECT id, at, who, action, subject, detail FROM audit ORDER BY id").fetchall():
        head = hashlib.sha256(json.dumps([head, *deed]).encode()).hexdigest()
        db.execute("UPDATE audit SET hash = ? WHERE id = ?", [head, id])
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit only grows'); END"
        )


@migrations()
def m010_facet_counts(db: Database) -> None:
    """How many repos there are of each task, base, method and licence, kept up as the listing changes; smallest first by an index."""
    columns = ("private", "task", "base", "method", "license")
    names, new = (", ".join(prefix + column for column in columns) for prefix in ("", "new."))
    same = " AND ".join(f"{column} = old.{column}" for column in columns)
    enter = f"INSERT INTO facet_counts VALUES ({new}, 1) ON CONFLICT DO UPDATE SET n = n + 1;"
    leave = f"UPDATE facet_counts SET n = n - 1 WHERE {same}; DELETE FROM facet_counts WHERE n = 0 AND {same};"
    _run(
        db,
        f"""CREATE TABLE facet_counts (
            private INTEGER NOT NULL, task TEXT NOT NULL, base TEXT NOT NULL, method TEXT NOT NULL, license TEXT NOT NULL,
            n INTEGER NOT NULL, PRIMARY KEY ({names})) WITHOUT ROWID""",
        f"INSERT INTO facet_counts SELECT {names}, count(*) FROM listing GROUP BY {names}",
        f"CREATE TRIGGER listing_enters AFTER INSERT ON listing BEGIN {enter} END",
        f"CREATE TRIGGER listing_leaves AFTER DELETE ON listing BEGIN {leave} END",
        f"CREATE TRIGGER listing_changes AFTER UPDATE OF {names} ON listing BEGIN {leave} {enter} END",
        "CREATE INDEX listing_bytes ON listing(bytes)",
    )


@migrations()
def m011_places(db: Database) -> None:
    """All that places on a leaderboard are made of, in one index: a task's scores lie beside each other."""
    db.execute(
        "CREATE INDEX evaluations_places ON evaluations"
        "(task, data_hash, metric, source, repo_id, digest, base_fingerprint, id, value)"
    )


@migrations()
def m012_found(db: Database) -> None:
    """The facets of what a search finds, by repo: counting them doesn't read whole rows."""
    db.execute("CREATE INDEX listing_found ON listing(repo_id, private, task, base, method, license)")


def _run(db: Database, *statements: str) -> None:
    for statement in statements:
        db.execute(statement)


def connect(path: Path) -> Database:
    """A connection for one thread. Rows answer to column names; autocommit, but for `write_transaction()`."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    _use_log(connection)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA cache_size = -32000")
    connection.execute(f"PRAGMA mmap_size = {MAPPED_BYTES}")
    return Database(connection)


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch to a write-ahead log. SQLite does not wait its turn for that, when several processes open a new file at once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


@contextmanager
def write_transaction(db: Database) -> Iterator[None]:
    """One write transaction that takes its lock at the start; rolled back when the body raises.

    Threads of one process take turns before they ask SQLite, which lets the loser of a race sleep ever longer.
    """
    with _TURN:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.conn.in_transaction:  # a full disk makes SQLite roll back by itself
                db.execute("ROLLBACK")
            raise


@contextmanager
def read_transaction(db: Database) -> Iterator[None]:
    """One view of the tables for several questions, whatever others write meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


@contextmanager
def write_if_free(db: Database) -> Iterator[None]:
    """As `write_transaction`, for what may as well not be written: raises sqlite3.OperationalError at once where another
    writer is at work."""
    if not _TURN.acquire(blocking=False):
        raise sqlite3.OperationalError("another thread is writing")
    try:
        db.execute("PRAGMA busy_timeout = 0")
        with write_transaction(db):
            yield
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        _TURN.release()
