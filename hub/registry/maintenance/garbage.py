"""Collect garbage: what deleted repos and interrupted uploads left.

Rows go first, under the write lock and only past a grace period, so that a publisher between upload and commit keeps its
bytes; files only once that is on disk. A crash between the two leaves garbage, never a row without its blob.
"""

from dataclasses import dataclass
from datetime import timedelta

from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.folder_lock import own_folder
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import from_now

GRACE_S = 86_400.0  # a client on a slow line may upload for hours before it commits
BATCH = 500  # files that go under one lock: writers wait no longer than that takes
REFERRED = "SELECT sha256 FROM files UNION SELECT data_hash FROM tasks UNION SELECT data_hash FROM evaluations"


@dataclass(frozen=True)
class Collected:
    """What `gc` took away."""

    revisions: int
    blobs: int
    bytes: int
    leftovers: int


def collect(registry: Registry, grace_s: float = GRACE_S) -> Collected:
    """Take what is older than `grace_s` seconds. Raises ConflictError while a backup or a check counts on the files."""
    busy = f"A backup or a check of {registry.path} is running, which needs every file: collect when that is done."
    with own_folder(registry.blobs.folder, busy):
        revisions = _collect_rows(registry, grace_s)
        sizes = _collect_files(registry, grace_s)
        leftovers = registry.blobs.sweep_incoming(max(grace_s, GRACE_S))
    return Collected(revisions, len(sizes), sum(sizes), leftovers)


def _collect_rows(registry: Registry, grace_s: float) -> int:
    before = from_now(timedelta(seconds=-grace_s))
    db = registry.db
    with write_transaction(db):
        revisions = _forget_deleted(registry, before)
        for table in ("uploads", "reservations"):
            db.execute(f"DELETE FROM {table} WHERE created_at <= ?", [before])
        db.execute(f"DELETE FROM blobs WHERE created_at <= ? AND sha256 NOT IN ({REFERRED})", [before])
    return revisions


def _forget_deleted(registry: Registry, before: str) -> int:
    """Drop the revisions of repos deleted before `before`; the repo's row stays, so that its name does."""
    gone = "SELECT id FROM repos WHERE deleted_at <= ? AND moved_to IS NULL"
    for table in ("refs", "evaluations"):
        registry.db.execute(f"DELETE FROM {table} WHERE repo_id IN ({gone})", [before])
    return registry.db.execute(f"DELETE FROM revisions WHERE repo_id IN ({gone})", [before]).rowcount


def _collect_files(registry: Registry, grace_s: float) -> list[int]:
    """Delete blobs without a row; the bytes of each."""
    db, blobs = registry.db, registry.blobs
    known = {row["sha256"] for row in db.execute("SELECT sha256 FROM blobs")}
    doomed = [name for name in blobs.names() if name not in known]
    sizes = []
    for start in range(0, len(doomed), BATCH):
        # The lock is taken anew, and rows and ages read anew: a publisher may have come between with the same bytes.
        with write_transaction(db):
            for name in doomed[start : start + BATCH]:
                row = db.execute("SELECT 1 FROM blobs WHERE sha256 = ?", [name]).fetchone()
                if row is None and blobs.has(name) and blobs.age_s(name) >= grace_s:
                    sizes.append(blobs.remove(name))
    return sizes
