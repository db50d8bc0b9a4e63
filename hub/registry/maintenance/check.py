"""Is a registry sound: every byte hashed again, every reference followed."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from graft.hub.registry import audit
from graft.hub.registry.maintenance.row_checks import CONTRADICTIONS, DAMAGE, Rule, find_broken_rows
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.folder_lock import share_folder
from graft.hub.registry.storage.schema import read_transaction

_HOLDERS = (
    "SELECT repos.namespace || '/' || repos.name || ': ' || path FROM files JOIN revisions ON revisions.id = revision_id "
    "JOIN repos ON repos.id = repo_id WHERE sha256 = :blob UNION ALL SELECT 'the data of task ' || slug FROM tasks "
    "WHERE data_hash = :blob LIMIT 1"
)


@dataclass(frozen=True)
class Report:
    """What a check saw. `unreferred`: blobs no row names, which `gc` will take; they are no problem. `seconds`: how long
    it took to read the blobs. `audit_head`: what stands for all that was done in it, of a registry in use (audit.py)."""

    blobs: int
    bytes: int
    revisions: int
    unreferred: int
    seconds: float
    problems: tuple[str, ...]
    audit_head: str = ""

    @property
    def bytes_per_s(self) -> int:
        return round(self.bytes / self.seconds) if self.seconds else 0


@dataclass(frozen=True)
class Rows:
    """What the tables say at one moment. `blobs`: sha256 -> bytes, of all that they refer to."""

    blobs: dict[str, int]
    revisions: int
    problems: tuple[str, ...]
    audit_head: str = ""


def check(registry: Registry, audit_head: str | None = None) -> Report:
    """Re-hash every blob, follow every reference and the audit's chain, which must have had the head `audit_head`.

    Works while others write; nothing is collected meanwhile.
    """
    with share_folder(registry.blobs.folder):
        rows = check_rows(registry.db, (*DAMAGE, *CONTRADICTIONS), audited=True, kept_head=audit_head)
        made = report(registry.db, registry.blobs, rows, find_broken(registry.blobs, rows.blobs))
        return replace(made, audit_head=rows.audit_head)


def check_rows(db: Database, rules: tuple[Rule, ...], *, audited: bool = False, kept_head: str | None = None) -> Rows:
    """The tables, and which rows break one of the rules; with `audited`, where the audit's chain breaks."""
    try:
        with read_transaction(db):
            blobs = {row["sha256"]: row["size"] for row in db.execute("SELECT sha256, size FROM blobs")}
            revisions = db.execute("SELECT count(*) FROM revisions").fetchone()[0]
            problems = [*find_broken_rows(db, rules), *(audit.verify(db, kept_head) if audited else ())]
            return Rows(blobs, revisions, tuple(problems), audit.head(db) if audited else "")
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, unreadable: nothing is known of the tables then
            raise
        return Rows({}, 0, (f"The database is damaged: {error}",))


def report(db: Database, blobs: BlobStore, rows: Rows, broken: Iterable[tuple[str, str]]) -> Report:
    """`broken`: blobs with what is wrong with them, found while they are counted."""
    started = time.perf_counter()
    problems = [f"{problem}{_holder(db, sha256)}" for sha256, problem in broken]
    seconds = time.perf_counter() - started
    return Report(
        blobs=len(rows.blobs),
        bytes=sum(rows.blobs.values()),
        revisions=rows.revisions,
        unreferred=len(set(blobs.names()) - rows.blobs.keys()),
        seconds=round(seconds, 6),
        problems=(*rows.problems, *problems),
    )


def find_broken(blobs: BlobStore, wanted: dict[str, int]) -> Iterator[tuple[str, str]]:
    """sha256 and problem, of those of `wanted` (sha256 -> bytes) that are not there as they were stored."""
    for sha256, size in sorted(wanted.items()):
        if problem := problem_of(blobs, sha256, size):
            yield sha256, problem


def problem_of(blobs: BlobStore, sha256: str, size: int) -> str | None:
    """What is wrong with one blob, read anew; None where nothing is."""
    if not blobs.has(sha256):
        return f"Blob {sha256} is missing."
    if not blobs.is_sound(sha256):
        return f"Blob {sha256} no longer hashes to its name."
    if blobs.path(sha256).stat().st_size != size:
        return f"Blob {sha256} is recorded with {size:,} bytes, and has others."
    return None


def _holder(db: Database, sha256: str) -> str:
    row = db.execute(_HOLDERS, {"blob": sha256}).fetchone()
    return f" It belongs to {row[0]}." if row else ""
