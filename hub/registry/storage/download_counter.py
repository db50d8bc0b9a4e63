"""Downloads, counted as well as can be: a reader never waits for a writer, and never fails for a number.

Counts that could not be written (a writer has the lock, the registry can't be written, the disk is full) wait in memory
for the next download. They are the one write that is not flushed to disk: a power cut may cost the last of them.
"""

import sqlite3
import threading
from collections import Counter
from pathlib import Path

BUSY_TIMEOUT_S = 0.02


class DownloadCounter:
    """Safe for many threads; they share one connection, under a lock."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._waiting: Counter[int] = Counter()  # repo id -> downloads not written yet
        self._connection: sqlite3.Connection | None = None

    def count(self, repo_id: int) -> None:
        """One more download. Raises nothing."""
        with self._lock:
            self._waiting[repo_id] += 1
            try:
                self._write()
            except sqlite3.Error:
                self._close()

    def close(self) -> None:
        with self._lock:
            self._close()

    def _write(self) -> None:
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.execute("PRAGMA synchronous = NORMAL")
        db, waiting = self._connection, [(number, repo_id) for repo_id, number in self._waiting.items()]
        db.execute("BEGIN IMMEDIATE")
        db.executemany("UPDATE repos SET downloads = downloads + ? WHERE id = ?", waiting)
        db.executemany("UPDATE listing SET downloads = downloads + ? WHERE repo_id = ?", waiting)
        db.execute("COMMIT")
        self._waiting.clear()

    def _close(self) -> None:
        """An open transaction is rolled back by it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
