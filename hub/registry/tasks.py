"""Tasks: a metric, an evaluation set, owners, and what `task:T` serves.

Functions over an open connection. A task belongs to the namespaces that an admin names, and to the admins: only their
promotions to `production` move what `task:T` serves. Everybody else's promote within their own repo, and no more.
"""

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

from graft.hub.adapters.model_card import UNTASKED
from graft.hub.errors import GraftError, NotFoundError, RevisionNotFoundError
from graft.hub.evaluation.metrics import METRICS, get_metric
from graft.hub.evaluation.task_data import parse_examples
from graft.hub.registry import search
from graft.hub.registry.access.callers import Caller
from graft.hub.registry.access.permissions import Action, may
from graft.hub.registry.access.visibility import visible
from graft.hub.registry.audit import audit
from graft.hub.registry.naming import PRODUCTION, REPO_NAME, check_slug
from graft.hub.registry.storage.blob_rows import record_blob
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now


@dataclass(frozen=True)
class Task:
    """`data_hash` is the sha256 of its evaluation set (JSONL, a blob), `examples` the set's number of lines.

    `owners`: the namespaces that say what `task:T` serves; with none, only admins do.
    """

    slug: str
    metric: str
    description: str
    data_hash: str
    examples: int
    created_at: str
    updated_at: str
    owners: list[str] = field(default_factory=list)

    @property
    def lower_is_better(self) -> bool:
        return self.metric in METRICS and METRICS[self.metric].lower_is_better


def add_task(
    db: Database,
    blobs: BlobStore,
    slug: str,
    metric: str,
    data: bytes,
    description: str,
    user: str,
    owners: Iterable[str] | None = None,
) -> Task:
    """`owners` None: as they are. Raises GraftError for a bad slug or owner or an unknown metric, DataError (with the line)
    for a bad evaluation set."""
    check_slug(slug)
    if slug == UNTASKED:
        raise GraftError(f"{slug!r} is what adapters without a task are for: choose another slug.")
    get_metric(metric)
    examples = len(parse_examples(data, "the evaluation set"))
    blob = blobs.put_bytes(data)
    at = now()
    with write_transaction(db):
        record_blob(db, blobs, blob, user, at)
        db.execute(
            "INSERT INTO tasks (slug, metric, description, data_hash, examples, created_at, updated_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (slug) DO UPDATE SET metric = excluded.metric, "
            "description = excluded.description, data_hash = excluded.data_hash, examples = excluded.examples, "
            "updated_at = excluded.updated_at",
            [slug, metric, description, blob.sha256, examples, at, at],
        )
        db.execute(
            "INSERT OR IGNORE INTO task_data (task, data_hash, examples, created_at) VALUES (?, ?, ?, ?)",
            [slug, blob.sha256, examples, at],
        )
        search.refresh_scores(db, slug)
        audit(db, user, "task.add", slug, blob.sha256)
        if owners is not None:
            _set_owners(db, slug, owners, user)
        return task(db, slug)


def set_owners(db: Database, slug: str, owners: Iterable[str], user: str) -> Task:
    """Give a task to these namespaces and no others. Raises NotFoundError, and GraftError for what names no namespace."""
    with write_transaction(db):
        task(db, slug)
        _set_owners(db, slug, owners, user)
        return task(db, slug)


def _set_owners(db: Database, slug: str, owners: Iterable[str], user: str) -> None:
    names = sorted({owner.lower() for owner in owners})
    for name in names:
        if not REPO_NAME.fullmatch(name):
            raise GraftError(f"{name!r} is no namespace: a task's owners are namespaces, such as 'ann'.")
    db.execute("DELETE FROM task_owners WHERE task = ?", [slug])
    for name in names:
        db.execute("INSERT INTO task_owners (task, namespace) VALUES (?, ?)", [slug, name])
    audit(db, user, "task.owners", slug, " ".join(names))


def task(db: Database, slug: str) -> Task:
    row = db.execute("SELECT * FROM tasks WHERE slug = ?", [slug]).fetchone()
    if row is None:
        known = ", ".join(other.slug for other in tasks(db)) or "none yet"
        raise NotFoundError(f"There is no task {slug!r} (there are: {known}): `graft task add` adds one.")
    return Task(**dict(row), owners=owners_of(db, slug))


def tasks(db: Database) -> list[Task]:
    owners: dict[str, list[str]] = {}
    for row in db.execute("SELECT task, namespace FROM task_owners ORDER BY task, namespace"):
        owners.setdefault(row["task"], []).append(row["namespace"])
    rows = db.execute("SELECT * FROM tasks ORDER BY slug")
    return [Task(**dict(row), owners=owners.get(row["slug"], [])) for row in rows]


def owners_of(db: Database, slug: str) -> list[str]:
    rows = db.execute("SELECT namespace FROM task_owners WHERE task = ? ORDER BY namespace", [slug])
    return [row["namespace"] for row in rows]


def count_examples(db: Database, slug: str, data_hash: str) -> int | None:
    """Of the task's evaluation set with this hash, of now or of before; None where it never had such a one."""
    row = db.execute("SELECT examples FROM task_data WHERE task = ? AND data_hash = ?", [slug, data_hash]).fetchone()
    return row["examples"] if row else None


def read_data(db: Database, blobs: BlobStore, slug: str, data_hash: str | None) -> bytes:
    """The evaluation set with this hash; None: the present one. Raises NotFoundError."""
    wanted = data_hash or task(db, slug).data_hash
    if count_examples(db, slug, wanted) is None or not blobs.has(wanted):
        raise NotFoundError(
            f"{slug} has no evaluation set {wanted[:12]} here (one without scores is not kept for ever)."
        )
    return blobs.read(wanted)


# What `task:T` serves


def follow_alias(db: Database, caller: Caller, repo_id: int) -> None:
    """A ref of a repo has moved: where it is the alias `production` and the caller may say so, what the revisions' tasks
    serve moves with it. Called in the same transaction, right after `refs.move`."""
    move = db.execute("SELECT * FROM ref_moves WHERE repo_id = ? ORDER BY id DESC LIMIT 1", [repo_id]).fetchone()
    if (move["kind"], move["name"]) != ("alias", PRODUCTION):
        return
    # The task that it leaves, if it does, and the one that it goes to.
    moves = {_task_of(db, move["old"]): None, _task_of(db, move["new"]): move["new"]}
    for slug, revision in moves.items():
        if slug is not None and may(caller, Action.TASK_PROMOTE, *owners_of(db, slug)):
            db.execute(
                "INSERT INTO task_moves (task, repo_id, revision_id, move_id) VALUES (?, ?, ?, ?)",
                [slug, repo_id, revision, move["id"]],
            )
            audit(db, move["who"], "task.promote", slug, revision or "", at=move["at"])


def _task_of(db: Database, revision_id: str | None) -> str | None:
    row = db.execute("SELECT task FROM artifacts WHERE revision_id = ?", [revision_id]).fetchone()
    return row["task"] if row else None


def find_promoted(db: Database, task: str, base: str | None, caller: Caller) -> str:
    """The revision last promoted to production for the task (on the base with this fingerprint), of those the caller sees.

    Raises RevisionNotFoundError where there is none.
    """
    seen, values = visible(caller, "live_repos")
    rows = db.execute(
        "SELECT task_moves.revision_id, artifacts.base_fingerprint, artifacts.base_id FROM task_moves "
        "JOIN artifacts ON artifacts.revision_id = task_moves.revision_id "
        "JOIN live_repos ON live_repos.id = task_moves.repo_id WHERE task_moves.task = ? AND task_moves.id = "
        "(SELECT max(id) FROM task_moves m WHERE m.task = task_moves.task AND m.repo_id = task_moves.repo_id) "
        f"AND {seen} ORDER BY task_moves.id DESC",
        [task, *values],
    )
    ids = {row["id"] for row in db.execute("SELECT id FROM bases WHERE fingerprint = ?", [base])}

    def may_be(row: sqlite3.Row) -> bool:
        """Whether an adapter without a fingerprint may be for this base: nobody knows the base by another id."""
        return not ids or row["base_id"] is None or row["base_id"] in ids

    for row in rows:
        if base is None or row["base_fingerprint"] == base or (not row["base_fingerprint"] and may_be(row)):
            return row["revision_id"]
    raise RevisionNotFoundError(
        f"No adapter of task {task!r} is in production{' on this base' if base else ''}: "
        f"`graft promote NS/NAME@REV {PRODUCTION}` puts one there."
    )
