"""One run at a time works in the demo's folder; what a killed one left running counts as it."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.hub.errors import GraftError


@contextmanager
def hold_folder(folder: Path) -> Iterator[int]:
    """The folder is this run's; yields the lock, a file that commands may keep open. Raises GraftError where it is taken."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GraftError(
                f"Another run works in {folder}, or a command that a killed one left behind: wait until it ends, or "
                f"choose another --folder."
            ) from None
        yield file.fileno()
