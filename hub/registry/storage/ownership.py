"""Which registry a folder of blobs belongs to: written down in both, and compared whenever the registry is opened.

Two registries must never share a folder: a blob that one of them does not know is garbage to its `gc`. So `registry.db`
has an id among its settings, and `registry.blobs/owner.json` repeats it beside the database's file name; the name tells
a copy of the database (same id, same folder) from a database that was renamed. Registries of graft before 0.1 have no
id and get one when they are first opened where they can be written.
"""

import glob
import json
import os
import secrets
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from graft.hub.errors import ConflictError, GraftError
from graft.hub.machine.atomic_files import flush
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.read_only import SQLITE_FILES, connect_read_only
from graft.hub.registry.storage.schema import migrations, write_transaction

BLOBS = ".blobs"
OWNER_FILE = "owner.json"
ID_SETTING = "registry.id"
SAMPLE = 100  # blobs looked for before a folder without an owner is taken for the registry's own


@dataclass(frozen=True)
class Owner:
    """`file`: the database's name in the folder where the blobs' folder lies. `restoring`: it may not be there yet."""

    id: str
    file: str
    restoring: bool = False


@dataclass(frozen=True)
class Claim:
    """What a registry says of itself. `used`: whether anything was ever written to it. `blobs`: some it refers to."""

    id: str | None
    used: bool
    blobs: tuple[str, ...]


UNMADE = Claim(None, False, ())


def blob_folder(path: Path) -> Path:
    """Where the registry at `path` keeps its files. Raises ConflictError for a database of that very name."""
    if path.suffix == BLOBS:
        raise ConflictError(f"{path} is what a folder of blobs is called: give the registry a name that ends in .db.")
    return path.with_suffix(BLOBS)


def read_owner(folder: Path) -> Owner | None:
    """None where nobody has claimed the folder. Raises ConflictError for a file that graft did not write."""
    try:
        return Owner(**json.loads((folder / OWNER_FILE).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise ConflictError(
            f"{folder / OWNER_FILE} can't be read, so nobody knows whose files {folder} holds: restore that file from a "
            f"backup of the folder."
        ) from None


def registry_id(db: Database) -> str | None:
    """None for a registry that graft before 0.1 made and that was not opened since where it can be written."""
    row = db.execute("SELECT value FROM settings WHERE key = ?", [ID_SETTING]).fetchone()
    return row["value"] if row else None


def give_id(path: Path, id: str) -> None:
    """Let a database that nobody else uses be another registry's."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", [ID_SETTING, id])


def prepare(db: Database, path: Path, blobs: BlobStore) -> None:
    """Bring the tables up to date and claim the folder of blobs, all or nothing, also when several processes open a new
    file at once. Raises ConflictError for a folder that is another registry's."""
    if migrations.pending(db) or read_owner(blobs.folder) != Owner(registry_id(db) or "", path.name):
        with write_transaction(db):
            migrations.apply(db)
            _claim(db, path, blobs)


def require_own(db: Database, path: Path, blobs: BlobStore) -> None:
    """As `prepare`, where nothing can be written. Raises ConflictError, GraftError for tables of an older graft."""
    if migrations.pending(db):
        raise GraftError(
            f"{path} was made by an older graft: open it once where it can be written, and it is brought up to date."
        )
    _require_free(path, blobs, _claim_of(db), read_owner(blobs.folder))


def require_room(path: Path, blobs: BlobStore) -> None:
    """Before a registry is made at `path`. Raises ConflictError where its folder of blobs is another's."""
    conflict = _conflict(path, blobs, UNMADE, read_owner(blobs.folder))
    if conflict and not path.exists():  # another process may have made it, and published to it, meanwhile
        raise ConflictError(conflict)


def claim_for_backup(db: Database, path: Path, blobs: BlobStore, *, earlier: bool) -> None:
    """The folder of blobs of a backup at `path`, for a copy of the registry `db`.

    `earlier`: an earlier state of this registry is known to lie there, whatever id it had (a restored registry has a new
    one). Raises ConflictError for a folder that is another registry's.
    """
    owner = read_owner(blobs.folder)
    mine = Owner(registry_id(db) or (owner.id if owner else secrets.token_hex(16)), path.name)
    theirs = owner.id != mine.id if owner else any(blobs.names())
    if theirs and not earlier:
        raise ConflictError(f"{blobs.folder} holds the files of another registry: choose another folder.")
    if owner != mine:
        _write(blobs, mine)


def claim_for_restore(path: Path, blobs: BlobStore) -> str:
    """The id of a registry that is to be made at `path` from a backup, its folder of blobs marked as being filled.

    Raises ConflictError for a folder with anything in it that an interrupted restore did not leave.
    """
    owner = read_owner(blobs.folder)
    if any(blobs.names()) if owner is None else not owner.restoring:
        raise ConflictError(
            f"{blobs.folder} exists, with the files of a registry whose database was at {path}: move it away (a registry is "
            f"its database and that folder), or delete it."
        )
    id = secrets.token_hex(16)
    _write(blobs, Owner(id, path.name, restoring=True))
    return id


def _claim(db: Database, path: Path, blobs: BlobStore) -> None:
    """Inside the transaction. The folder learns its owner first: a crash between the two is mended at the next open."""
    claim, owner = _claim_of(db), read_owner(blobs.folder)
    _require_free(path, blobs, claim, owner)  # of that owner: who comes after it is found when the mark is written
    begun = owner.id if owner and owner.file == path.name else None  # a folder that was copied has its first owner's
    mine = Owner(claim.id or begun or secrets.token_hex(16), path.name)
    if owner is None:
        _write_first(blobs, mine)
    elif owner != mine:
        _write(blobs, mine)
    db.execute("INSERT OR IGNORE INTO settings (key, value) VALUES (?, ?)", [ID_SETTING, mine.id])


def _claim_of(db: Database) -> Claim:
    used = db.execute("SELECT EXISTS (SELECT 1 FROM audit)").fetchone()[0]
    rows = db.execute("SELECT sha256 FROM blobs LIMIT ?", [SAMPLE])
    return Claim(registry_id(db), bool(used), tuple(row["sha256"] for row in rows))


def _require_free(path: Path, blobs: BlobStore, claim: Claim, owner: Owner | None) -> None:
    if conflict := _conflict(path, blobs, claim, owner):
        raise ConflictError(conflict)


def _conflict(path: Path, blobs: BlobStore, claim: Claim, owner: Owner | None) -> str | None:
    """Why the registry can't have the folder of blobs, which is `owner`'s; None where it can."""
    folder = blobs.folder
    other = path.with_name(owner.file) if owner else _find_sharer(path)
    if other is not None and _shares(other, path):
        return (
            f"{folder}, where {path} would keep its files, holds those of {other}: give each registry a name of its own "
            f"that ends in .db, and a copy of that folder beside it under the same name."
        )
    if owner is not None and claim.id not in (None, owner.id):
        return (
            f"{folder} holds the files of another registry than {path}: put the files that belong to {path} there, or "
            f"`graft registry restore` a backup under another name."
        )
    if not claim.used and (owner is None or claim.id is None) and any(blobs.names()):
        return (
            f"{folder}, where {path} would keep its files, holds files of a registry that is not there any more: put its "
            f"database back, delete the folder, or choose another --registry."
        )
    if owner is None and claim.blobs and not any(map(blobs.has, claim.blobs)):
        return (
            f"{folder} holds none of the files of {path}: move them there (a registry is its database and the folder "
            f"beside it), or `graft registry restore` a backup under another name."
        )
    return None


def _shares(other: Path, path: Path) -> bool:
    """Whether `other` is another database, which would keep its files in the same folder."""
    same = other.name == path.name or (other.exists() and path.exists() and other.samefile(path))
    return not same and other.is_file() and other.with_suffix(BLOBS) == path.with_suffix(BLOBS)


def _find_sharer(path: Path) -> Path | None:
    """Another registry beside `path` whose files would lie in the same folder, which nobody has claimed yet."""
    beside = sorted(path.parent.glob(glob.escape(path.with_suffix("").name) + "*"))
    others = (each for each in beside if not each.name.endswith(SQLITE_FILES) and _shares(each, path))
    return next(filter(_is_registry, islice(others, SAMPLE)), None)


def _is_registry(path: Path) -> bool:
    try:
        db = connect_read_only(path)
    except sqlite3.Error:
        return False
    try:
        return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ref_moves'").fetchone() is not None
    except sqlite3.Error:
        return False
    finally:
        db.close()


@contextmanager
def _staged(blobs: BlobStore, owner: Owner) -> Iterator[str]:
    """The mark, whole and on disk under another name."""
    descriptor, name = tempfile.mkstemp(dir=blobs.incoming)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(owner), file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o444)
        yield name
    finally:
        Path(name).unlink(missing_ok=True)


def _write_first(blobs: BlobStore, owner: Owner) -> None:
    """Raises ConflictError where another process has claimed the folder at this moment."""
    with _staged(blobs, owner) as staged:
        try:
            os.link(staged, blobs.folder / OWNER_FILE)
        except FileExistsError:
            raise ConflictError(f"{blobs.folder} has just become another registry's: choose another name.") from None
    flush(blobs.folder)


def _write(blobs: BlobStore, owner: Owner) -> None:
    with _staged(blobs, owner) as staged:
        os.replace(staged, blobs.folder / OWNER_FILE)
    flush(blobs.folder)
