"""Output folders: proven to take files before the work begins, and never written over unasked. Torch-free."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from graft.hub.errors import GraftError

_STAMP = b"\0" * (1 << 16)  # more than a file system keeps inside a directory's own block


def require_free(folder: Path, instead: str = "choose another folder, or remove it first") -> None:
    """Raises GraftError for a file, and for a folder that holds something. `instead`: what the user can do."""
    if not folder.is_dir() and folder.exists():
        raise GraftError(f"{folder} is a file, and a folder is to be written: choose another name.")
    if folder.is_dir() and any(folder.iterdir()):
        raise GraftError(f"{folder} is there already and not empty: {instead}.")


def require_writable(folder: Path) -> None:
    """Make the folder, write a stamp into it, and take both away again. Raises GraftError where that fails."""
    try:
        with _make_folder(folder), tempfile.TemporaryFile(dir=folder, buffering=0) as stamp:
            if stamp.write(_STAMP) < len(_STAMP):
                raise OSError(None, "no space left on the device")
    except OSError as error:
        raise GraftError(
            f"Nothing can be written to {folder} ({error.strerror}). Choose another folder, or mend that."
        ) from None


def claim(folder: Path) -> None:
    """What a command asks of its output folder before it works for it. Raises GraftError."""
    require_free(folder)
    require_writable(folder)


def room_at(folder: Path) -> tuple[Path, int]:
    """What there is of a folder's path, and the free bytes of its disk."""
    path = folder.resolve()
    there = next(each for each in (path, *path.parents) if each.exists())
    return there, shutil.disk_usage(there).free


@contextmanager
def _make_folder(folder: Path) -> Iterator[None]:
    """The folder and its parents, for the length of the block."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in missing:
            with suppress(OSError):
                each.rmdir()
