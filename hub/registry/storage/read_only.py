"""A registry that this process may read and not write: another user's file, a read-only file system.

SQLite reads a database with a write-ahead log (WAL) through two files beside it, and makes them when they are missing,
also for a reader. Here that either fails, or leaves files that the owner can't write and so locks the owner out. So
while a writer has the database open (its log is there) it is read through the owner's files, with their locks; while
nobody has, it is opened as immutable, which needs no file, and opened anew once its state on disk has changed.
"""

import os
import sqlite3
from pathlib import Path

from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import BUSY_TIMEOUT_S

SQLITE_FILES = ("-wal", "-shm", "-journal")  # that SQLite keeps beside a database

State = tuple[int, int, int, bool]


def may_write(path: Path) -> bool:
    """Whether the database can be written, or made. SQLite needs to write beside it, too."""
    place = path.parent
    return os.access(place, os.W_OK) and (os.access(path, os.W_OK) or not path.exists())


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def state_of(path: Path) -> State:
    """What changes on disk whenever the database does, or once somebody has opened it to write."""
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns, log_of(path).exists()


def connect_read_only(path: Path) -> Database:
    """A connection that writes nothing, beside the database neither. Raises sqlite3.OperationalError."""
    mode = "mode=ro" if log_of(path).exists() else "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
    )
    connection.row_factory = sqlite3.Row
    return Database(connection)
