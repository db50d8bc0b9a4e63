"""Keeping a registry sound: check every byte, collect garbage, back up, restore, count.

Works on a registry in use. The order is what makes it safe: a backup takes the tables first and the blobs, which never
change, afterwards; garbage is collected under the write lock and only past a grace period, so that a publisher between
upload and commit keeps its bytes.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from graft.hub.errors import ConflictError, GraftError, NotFoundError
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import FORMAT

GRACE_S = 3600.0
DATABASE = "registry.db"
BLOBS = "registry.blobs"
REFERRED = "SELECT sha256 FROM files UNION SELECT data_hash FROM tasks UNION SELECT data_hash FROM evaluations"


@dataclass(frozen=True)
class Report:
    """What a check saw. `unreferred`: blobs no row names, which `gc` will take; they are no problem."""

    blobs: int
    bytes: int
    revisions: int
    unreferred: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Collected:
    """What `gc` took away."""

    revisions: int
    blobs: int
    bytes: int
    leftovers: int


def check(registry: Registry) -> Report:
    """Re-hash every blob and follow every reference."""
    db = registry.db
    known = {row["sha256"]: row["size"] for row in db.execute("SELECT sha256, size FROM blobs")}
    there = set(registry.blobs.names())
    problems = [*_broken_rows(registry), *_broken_blobs(registry.blobs, known)]
    revisions = db.execute("SELECT count(*) FROM revisions").fetchone()[0]
    return Report(len(known), sum(known.values()), revisions, len(there - known.keys()), tuple(problems))


def _broken_rows(registry: Registry) -> Iterator[str]:
    db = registry.db
    for row in db.execute("PRAGMA integrity_check"):
        if row[0] != "ok":
            yield f"registry.db is damaged: {row[0]}"
    for row in db.execute("PRAGMA foreign_key_check"):
        yield f"A row of {row['table']} refers to a missing row of {row['parent']}."
    for row in db.execute(
        "SELECT namespace, repos.name, revision_id FROM refs JOIN repos ON repos.id = repo_id "
        "WHERE NOT EXISTS (SELECT 1 FROM files WHERE files.revision_id = refs.revision_id) AND EXISTS "
        "(SELECT 1 FROM artifacts WHERE artifacts.revision_id = refs.revision_id)"
    ):
        yield f"{row['namespace']}/{row['name']}: revision {row['revision_id']} has lost its files."
    for row in db.execute(
        "SELECT repos.namespace, repos.name FROM listing JOIN repos ON repos.id = listing.repo_id "
        "LEFT JOIN refs ON refs.repo_id = repos.id AND kind = 'branch' AND refs.name = 'main' "
        "WHERE coalesce(refs.revision_id, '') != listing.revision_id"
    ):
        yield f"{row['namespace']}/{row['name']}: its listing is not of its main revision."


def _broken_blobs(blobs: BlobStore, known: dict[str, int]) -> Iterator[str]:
    for sha256 in sorted(known):
        if not blobs.has(sha256):
            yield f"Blob {sha256} is missing."
        elif not blobs.is_sound(sha256):
            yield f"Blob {sha256} no longer hashes to its name."


def collect(registry: Registry, grace_s: float = GRACE_S) -> Collected:
    """Take what deleted repos and interrupted uploads left, once it is older than `grace_s` seconds."""
    before = (datetime.now(UTC) - timedelta(seconds=grace_s)).strftime(FORMAT)
    db, blobs = registry.db, registry.blobs
    with write_transaction(db):
        revisions = _forget_deleted(registry, before)
        db.execute("DELETE FROM uploads WHERE created_at <= ?", [before])
        db.execute(f"DELETE FROM blobs WHERE created_at <= ? AND sha256 NOT IN ({REFERRED})", [before])
    # Only once that is on disk may files go: a crash here leaves garbage, before it a row without its blob. The lock is
    # taken anew, and the names read anew, since a publisher may have come between with some of the same bytes.
    with write_transaction(db):
        known = {row["sha256"] for row in db.execute("SELECT sha256 FROM blobs")}
        doomed = [name for name in blobs.names() if name not in known and blobs.age_s(name) >= grace_s]
        freed = sum(blobs.remove(name) for name in doomed)
    return Collected(revisions, len(doomed), freed, blobs.sweep_incoming(max(grace_s, GRACE_S)))


def _forget_deleted(registry: Registry, before: str) -> int:
    """Drop the revisions of repos deleted before `before`; the repo's row stays, so that its name does."""
    gone = "SELECT id FROM repos WHERE deleted_at <= ? AND moved_to IS NULL"
    registry.db.execute(f"DELETE FROM evaluations WHERE repo_id IN ({gone})", [before])
    return registry.db.execute(f"DELETE FROM revisions WHERE repo_id IN ({gone})", [before]).rowcount


def backup(registry: Registry, folder: Path) -> Report:
    """A copy that `restore` takes, made while the registry is in use. Blobs that an earlier backup has are not copied again."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{DATABASE}.new"
    fresh.unlink(missing_ok=True)
    registry.db.execute("VACUUM INTO ?", [str(fresh)])
    target = BlobStore(folder / BLOBS)
    for row in registry.db.execute("SELECT sha256 FROM blobs").fetchall():
        if not target.has(row["sha256"]):
            with registry.blobs.open(row["sha256"]) as stream:
                target.put(stream, registry.blobs.path(row["sha256"]).stat().st_size, row["sha256"])
    fresh.replace(folder / DATABASE)
    copy = Registry(folder / DATABASE, create=False)
    try:
        return check(copy)
    finally:
        copy.close()


def restore(folder: Path, path: Path) -> Report:
    """Make a registry at `path` from a backup. Raises ConflictError when there is one, GraftError for a broken backup."""
    if not (folder / DATABASE).is_file():
        raise NotFoundError(f"{folder} is no backup: it holds no {DATABASE}.")
    if path.exists():
        raise ConflictError(f"{path} exists: move it away first, so that nothing is overwritten by mistake.")
    # What a killed process left beside a file that is no more would be replayed into the restored one.
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    source, target = BlobStore(folder / BLOBS), BlobStore(path.with_suffix(".blobs"))
    for name in source.names():
        if not target.has(name):
            with source.open(name) as stream:
                target.put(stream, source.path(name).stat().st_size, name)
    shutil.copyfile(folder / DATABASE, path)
    report = check(Registry(path, create=False))
    if report.problems:
        raise GraftError(f"The backup is not sound: {report.problems[0]} ({len(report.problems)} problems in all)")
    return report


def stats(registry: Registry) -> dict[str, int]:
    """Counts for people who run a registry."""
    db = registry.db
    counts = {
        "adapters": "SELECT count(*) FROM listing",
        "deleted names": "SELECT count(*) FROM repos WHERE deleted_at IS NOT NULL",
        "revisions": "SELECT count(*) FROM revisions",
        "bases": "SELECT count(*) FROM bases",
        "tasks": "SELECT count(*) FROM tasks",
        "evaluations": "SELECT count(*) FROM evaluations",
        "users": "SELECT count(*) FROM users",
        "downloads": "SELECT coalesce(sum(downloads), 0) FROM repos",
        "blobs": "SELECT count(*) FROM blobs",
        "blob bytes": "SELECT coalesce(sum(size), 0) FROM blobs",
        "bytes if nothing were shared": "SELECT coalesce(sum(size), 0) FROM files JOIN blobs USING (sha256)",
    }
    numbers = {name: db.execute(sql).fetchone()[0] for name, sql in counts.items()}
    return numbers | {"database bytes": registry.path.stat().st_size}
