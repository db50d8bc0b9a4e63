"""One run at a time works in the demo's folder; what a killed one left running counts as it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.hub.machine.file_locks import lock


@contextmanager
def hold_folder(folder: Path) -> Iterator[int]:
    """The folder is this run's; yields the lock, a file that commands may keep open. Raises GraftError where it is taken."""
    with (folder / ".lock").open("w") as file:
        busy = (
            f"Another run works in {folder}, or a command that a killed one left behind: wait until it ends, or "
            f"choose another --folder."
        )
        lock(file.fileno(), fcntl.LOCK_EX, 0.0, busy)
        yield file.fileno()
