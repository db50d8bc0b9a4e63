"""Who did what, written down once and never changed: a chain in which each entry's hash covers the one before.

The tables refuse to change or delete an entry. Whoever can write to the file itself can get around that, but not around
the chain: `verify` finds the break, and a head that was kept elsewhere (every backup prints it) finds a chain that was
forged as a whole.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.timestamps import now

START = ""  # what the first entry follows


@dataclass(frozen=True)
class Entry:
    """One deed. `hash` is the chain's head after it."""

    id: int
    at: str
    who: str
    action: str
    subject: str
    detail: str
    hash: str


def audit(db: Database, who: str, action: str, subject: str, detail: str = "", *, at: str | None = None) -> None:
    """Note a write, inside its own transaction. `at`: when it was, if not just now."""
    at = at or now()
    db.execute(
        "INSERT INTO audit (at, who, action, subject, detail, hash) VALUES (?, ?, ?, ?, ?, ?)",
        [at, who, action, subject, detail, chain(head(db), at, who, action, subject, detail)],
    )


def chain(before: str, at: str, who: str, action: str, subject: str, detail: str) -> str:
    """The hash of an entry that follows the one with the hash `before`."""
    return hashlib.sha256(json.dumps([before, at, who, action, subject, detail]).encode()).hexdigest()


def head(db: Database) -> str:
    """The last entry's hash, which stands for all of them; empty where there is none."""
    row = db.execute("SELECT hash FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    return row["hash"] if row else START


def verify(db: Database, kept_head: str | None = None) -> Iterator[str]:
    """What is wrong with the chain: where it breaks, and that it never had a head that was `kept_head`."""
    before, known = START, kept_head in (None, START)
    for row in db.execute("SELECT * FROM audit ORDER BY id"):
        entry = _entry(row)
        if entry.hash != chain(before, entry.at, entry.who, entry.action, entry.subject, entry.detail):
            yield f"The audit's entry {entry.id} ({entry.at}, {entry.action}) was changed, or one before it is gone."
            return
        before, known = entry.hash, known or entry.hash == kept_head
    if not known:
        yield f"The audit never had the head {kept_head}: entries are gone, or all of them were written anew."


def entries(db: Database, *, who: str = "", subject: str = "", limit: int = 100) -> list[Entry]:
    """The newest first, of one person or about one subject where asked."""
    rows = db.execute(
        "SELECT * FROM audit WHERE (? = '' OR who = ?) AND (? = '' OR subject = ?) ORDER BY id DESC LIMIT ?",
        [who, who, subject, subject, limit],
    )
    return [_entry(row) for row in rows]


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(**{name: row[name] for name in Entry.__dataclass_fields__})
