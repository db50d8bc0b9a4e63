"""How much a user may have stored and ask for, so that a write token can't fill the disk.

A user's bytes are the blobs that they were the first to commit, the uploads of theirs that no commit names yet, what is set
aside for uploads on their way or that failed (until `gc`, their bytes may lie in the store), and what their deeds take in
the tables: the texts of their revisions, and DEED_BYTES for each entry of theirs in the audit.
"""

import secrets
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from graft.hub.errors import NotFoundError, TooLargeError
from graft.hub.registry.access.callers import DEFAULT_QUOTA, OWNER, UNLIMITED, Quota
from graft.hub.registry.audit import audit
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now

BLOCK_BYTES = 4096  # a file takes so many at least, however small it is
DEED_BYTES = 2000  # about what a write that is no upload leaves in the tables at most


@dataclass(frozen=True)
class Usage:
    """What a user has now."""

    bytes: int
    repos: int


def read_quota(db: Database, user: str) -> Quota:
    """A user's own limits, and the default ones where nothing else was set; none at all for who is no user."""
    row = db.execute(
        "SELECT bytes, repos, requests FROM users LEFT JOIN quotas ON user_id = users.id WHERE name = ?", [user]
    ).fetchone()
    if row is None:
        return UNLIMITED
    return Quota(
        bytes=DEFAULT_QUOTA.bytes if row["bytes"] is None else row["bytes"],
        repos=DEFAULT_QUOTA.repos if row["repos"] is None else row["repos"],
        requests=row["requests"],
    )


def set_quota(db: Database, user: str, quota: Quota) -> None:
    """Change the limits that `quota` gives, and leave the others. Raises NotFoundError for an unknown user."""
    with write_transaction(db):
        row = db.execute("SELECT id FROM users WHERE name = ?", [user]).fetchone()
        if row is None:
            raise NotFoundError(f"There is no user {user!r}: `graft hub tokens` lists them.")
        db.execute(
            "INSERT INTO quotas (user_id, bytes, repos, requests) VALUES (?, ?, ?, ?) ON CONFLICT (user_id) DO UPDATE SET "
            "bytes = coalesce(excluded.bytes, bytes), repos = coalesce(excluded.repos, repos), "
            "requests = coalesce(excluded.requests, requests)",
            [row["id"], quota.bytes, quota.repos, quota.requests],
        )
        audit(db, OWNER.name, "quota.set", user, f"bytes {quota.bytes} repos {quota.repos} requests {quota.requests}")


def measure_usage(db: Database, user: str) -> Usage:
    *stored, deeds, repos = db.execute(
        "SELECT (SELECT coalesce(sum(max(size, :block)), 0) FROM blobs WHERE who = :who), "
        "(SELECT coalesce(sum(max(size, :block)), 0) FROM uploads WHERE who = :who AND sha256 NOT IN (SELECT sha256 FROM blobs)), "
        "(SELECT coalesce(sum(bytes), 0) FROM reservations WHERE who = :who), "
        "(SELECT coalesce(sum(row_bytes), 0) FROM revisions WHERE author = :who COLLATE NOCASE), "
        "(SELECT count(*) FROM audit WHERE who = :who COLLATE NOCASE), "
        "(SELECT count(*) FROM live_repos WHERE created_by = :who)",
        {"who": user, "block": BLOCK_BYTES},
    ).fetchone()
    return Usage(sum(stored) + DEED_BYTES * deeds, repos)


def require_repo(db: Database, user: str) -> None:
    """Raises TooLargeError where one more repo is one too many. Called in the transaction that makes it."""
    most = read_quota(db, user).repos
    if most is not None and (count := measure_usage(db, user).repos) >= most:
        raise TooLargeError(f"{user} has {count:,} repos and may have {most:,}: delete some, or ask an admin for more.")


def release(db: Database, key: str) -> None:
    """What was set aside is stored, and counted as such."""
    with write_transaction(db):
        db.execute("DELETE FROM reservations WHERE key = ?", [key])


def require_room(db: Database, user: str, size: int, on_the_way: int = 0) -> None:
    """Raises TooLargeError where `size` more bytes, beside those on the way, are more than the user may have."""
    most = read_quota(db, user).bytes
    if most is not None and (used := measure_usage(db, user).bytes + on_the_way) + size > most:
        raise TooLargeError(
            f"{user} has {used:,} of {most:,} bytes, and {size:,} more don't fit: delete adapters, or ask an admin for more "
            "(`graft hub quota`). What was deleted or failed counts until the next `graft registry gc`."
        )


def _keep(db: Database, user: str, size: int, key: str) -> None:
    row = [key, user, size, now()]
    db.execute("INSERT OR REPLACE INTO reservations (key, who, bytes, created_at) VALUES (?, ?, ?, ?)", row)


class InFlight:
    """Bytes that are on their way to a hub, by user: of many uploads at once each knows of the others."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def room_for(self, db: Database, user: str, size: int) -> Iterator[None]:
        """Room for `size` bytes that the body stores. Raises TooLargeError where there is none.

        Where the body fails they are set aside until `gc`, for a part of them may lie in the store.
        """
        with self._lock:
            require_room(db, user, size, self._bytes[user])
            self._bytes[user] += size
        try:
            yield
        except BaseException:
            with suppress(sqlite3.OperationalError), write_transaction(db):
                _keep(db, user, size, secrets.token_hex(16))
            raise
        finally:
            with self._lock:
                self._bytes[user] -= size

    def reserve(self, db: Database, user: str, size: int, key: str) -> None:
        """Set `size` bytes aside for an upload that comes in parts, once per `key`, until `release` or the next `gc`.

        Raises TooLargeError where the user has no room for them.
        """
        with self._lock, write_transaction(db):  # or two ways in would each find the room that is there once
            if db.execute("SELECT 1 FROM reservations WHERE key = ? AND bytes >= ?", [key, size]).fetchone() is None:
                require_room(db, user, size, self._bytes[user])
                _keep(db, user, size, key)
