"""Back up and restore: a copy of a registry in use, verified before it counts, and a registry made from one.

A backup is a folder that looks like a registry: `registry.db` and `registry.blobs/`. Blobs never change, so a repeated
backup copies only what is new, and whatever is interrupted is done by doing it again: until the one rename that puts
`registry.db` in its place, the last good backup (or no registry) is what is there.
"""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from graft.hub.errors import ConflictError, GraftError, NotFoundError
from graft.hub.machine.atomic_files import flush
from graft.hub.registry import audit
from graft.hub.registry.maintenance.check import Report, check_rows, problem_of, report
from graft.hub.registry.maintenance.row_checks import DAMAGE
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.blob_store import BlobStore, DamagedBlobError
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.folder_lock import own_folder, share_folder
from graft.hub.registry.storage.ownership import blob_folder, claim_for_backup, claim_for_restore, give_id
from graft.hub.registry.storage.read_only import connect_read_only, log_of

DATABASE = "registry.db"
FRESH = ".new"  # appended to a database's name while it is not yet proven
BATCH = 64  # blobs that get their names at once
LEFT_BESIDE = ("-wal", "-shm")  # by SQLite, of a database that is no more
LINEAGE = ("id", "at", "who", "action", "subject", "detail")


class UnsoundError(GraftError):
    """A copy that could not be restored."""

    code = "unsound_backup"


def backup(registry: Registry, folder: Path) -> Report:
    """A copy that `restore` takes, made while the registry is in use.

    Raises UnsoundError where the copy could not be restored, ConflictError for a folder with the backup of another
    registry, or one that another backup is being written to. The last good backup is kept then.
    """
    target = BlobStore(blob_folder(folder / DATABASE))
    if target.folder.samefile(registry.blobs.folder):
        raise ConflictError(f"{folder} is where the registry itself lies: choose another folder, best on another disk.")
    busy = f"Another backup is being written to {folder}, or one is being restored from it: wait until that is done."
    with own_folder(target.folder, busy):
        claim_for_backup(registry.db, folder / DATABASE, target, earlier=_holds_earlier(registry.db, folder))
        with share_folder(registry.blobs.folder), _snapshot(registry.db, folder / DATABASE) as (fresh, db):
            made = _copy(db, registry.blobs, target)
            if made.problems:
                raise UnsoundError(_say(f"{folder} keeps what it had, since this copy could not be restored", made))
            made = replace(made, audit_head=audit.head(db))
            _put_in_place(fresh, folder / DATABASE)
    return made


def restore(folder: Path, path: Path) -> Report:
    """Make a registry at `path` from a backup, every byte checked on the way. After a failure it may be tried again.

    It is another registry than the one that was backed up, with another id, so that the two never share a folder.
    Raises NotFoundError for a folder without a backup, ConflictError where a registry, or something of one, is at
    `path`, UnsoundError for a damaged backup.
    """
    if not (folder / DATABASE).is_file():
        raise NotFoundError(f"{folder} is no backup: it holds no {DATABASE}.")
    _require_nothing_at(path)
    blob_folder(path).parent.mkdir(parents=True, exist_ok=True)
    target = BlobStore(blob_folder(path))
    with own_folder(target.folder, f"Another restore to {path} is at work: wait until it is done."):
        id = claim_for_restore(path, target)
        try:
            return _restore(folder, path, target, id)
        except BaseException:
            if not path.exists():
                shutil.rmtree(target.folder)
            raise


def _restore(folder: Path, path: Path, target: BlobStore, id: str) -> Report:
    source = BlobStore(blob_folder(folder / DATABASE), read_only=True)
    with share_folder(source.folder), closing(_open_backup(folder)) as kept, _snapshot(kept, path, id) as (fresh, db):
        made = _copy(db, source, target)
        if made.problems:
            raise UnsoundError(_say(f"The backup in {folder} is not sound", made))
        _require_nothing_at(path)
        _put_in_place(fresh, path)
    Registry(path).close()  # it takes its folder, which is whole now
    return made


def _open_backup(folder: Path) -> Database:
    """Raises UnsoundError for a file that is no database."""
    db = connect_read_only(folder / DATABASE)
    try:
        db.execute("SELECT 1 FROM audit LIMIT 1").fetchone()
    except sqlite3.DatabaseError as error:
        db.close()
        raise UnsoundError(
            f"{folder / DATABASE} can't be read ({error}): move it away, or use another folder."
        ) from None
    return db


def _holds_earlier(db: Database, folder: Path) -> bool:
    """Whether a folder's backup is an earlier state of this registry. Raises ConflictError where it is none: it would be
    lost."""
    if not (folder / DATABASE).exists():
        return False
    columns = ", ".join(LINEAGE)
    with closing(_open_backup(folder)) as kept:
        last = kept.execute(f"SELECT {columns} FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    if last is None:
        return False
    same = " AND ".join(f"{column} = ?" for column in LINEAGE)
    if db.execute(f"SELECT 1 FROM audit WHERE {same}", tuple(last)).fetchone() is None:
        raise ConflictError(
            f"{folder} holds the backup of another registry, or of a later state of this one ({last['at']}), which would "
            f"be lost: choose another folder."
        )
    return True


@contextmanager
def _snapshot(db: Database, path: Path, id: str | None = None) -> Iterator[tuple[Path, Database]]:
    """What a database holds at this moment, as a file beside `path` and open for reading; gone afterwards, unless it was
    put in its place. `id`: what it is called from now on, if not as before."""
    fresh = path.with_name(path.name + FRESH)
    fresh.unlink(missing_ok=True)
    try:
        db.execute("VACUUM INTO ?", [str(fresh)])
        if id is not None:
            give_id(fresh, id)
        flush(fresh)
        with closing(connect_read_only(fresh)) as copy:
            yield fresh, copy
    finally:
        fresh.unlink(missing_ok=True)


def _copy(db: Database, source: BlobStore, target: BlobStore) -> Report:
    """Check a copied database, and give it the blobs that it refers to."""
    rows = check_rows(db, DAMAGE)
    return report(db, target, rows, _copy_blobs(source, target, rows.blobs))


def _copy_blobs(source: BlobStore, target: BlobStore, wanted: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Copy what `target` lacks or holds damaged; yields what `source` doesn't have whole. Every byte is hashed once."""
    todo = iter(sorted(wanted.items()))
    while batch := list(islice(todo, BATCH)):
        with target.receive() as arrivals:
            for sha256, size in batch:
                if problem_of(target, sha256, size) is None:
                    continue
                try:
                    with source.open(sha256) as stream:
                        arrivals.put(stream, size, sha256)
                except (DamagedBlobError, ConflictError):
                    yield sha256, problem_of(source, sha256, size) or f"Blob {sha256} changed while it was copied."


def _require_nothing_at(path: Path) -> None:
    if path.exists():
        raise ConflictError(f"{path} exists: move it away first, so that nothing is overwritten by mistake.")
    log = log_of(path)
    if log.exists() and log.stat().st_size:
        raise ConflictError(
            f"{log} is left of a registry that was moved away without it, and may hold its last changes: move it to that "
            f"registry, or delete it."
        )


def _put_in_place(fresh: Path, path: Path) -> None:
    for suffix in LEFT_BESIDE:  # it would be replayed into the new database
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    fresh.replace(path)
    flush(path.parent)


def _say(what: str, made: Report) -> str:
    return f"{what} ({len(made.problems)} problems):\n" + "\n".join(made.problems)
