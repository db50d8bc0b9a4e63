"""A registry's connections: one a thread, to write where that is possible, else to read."""

import threading
from pathlib import Path

from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.read_only import State, connect_read_only, may_write, state_of
from graft.hub.registry.storage.schema import connect


class _Thread(threading.local):
    """What each thread has of its own. `state`: of a file that can't be written here, when it was connected to."""

    db: Database | None = None
    state: State | None = None


class Connections:
    """To the database at `path`, which is made when missing."""

    def __init__(self, path: Path):
        self.path = path
        self.read_only = path.exists() and not may_write(path)
        self._thread = _Thread()

    @property
    def db(self) -> Database:
        """This thread's."""
        thread = self._thread
        if self.read_only and thread.state != (state := state_of(self.path)):
            thread.db, thread.state = connect_read_only(self.path), state
        elif thread.db is None:
            thread.db = connect(self.path)
        return thread.db

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        if self._thread.db is not None:
            self._thread.db.close()
            self._thread.db = self._thread.state = None
