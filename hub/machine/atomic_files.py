"""Folders written whole: the files are staged inside, and move to their names once all of them are on disk.

Knows nothing of what the files are.
"""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from graft.hub.machine.file_locks import alone_in

STAGING = ".writing"
WAIT_S = 60.0


@contextmanager
def write_folder_whole(
    folder: Path, *, last: Sequence[str] = (), outdated: Callable[[], Iterable[str]] = tuple
) -> Iterator[Path]:
    """A staging folder for the new files of `folder`; where the block or the disk fails, `folder` is as it was.

    `last`: the files without which nobody takes the folder for what it is, the surest sign at the end. Their new ones
    come last, in this order, and their old ones go first, in the opposite one, so that a crash while the files move never
    leaves a mixture of old and new that loads. `outdated`: other old files that go. Writers of one folder take turns.
    Raises OSError for a full disk or a missing right, ConflictError where another writer takes longer than WAIT_S.
    """
    new = not folder.exists()
    with alone_in(folder, WAIT_S):
        staging = folder / STAGING
        try:
            shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
            staging.mkdir()
            yield staging
            _move(staging, folder, last, outdated())
        except SafetensorError as error:  # how its writer tells of a full disk
            raise OSError(errno.EIO, str(error), str(folder)) from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if new:
                with suppress(OSError):  # not empty: it has been written
                    folder.rmdir()


@dataclass(frozen=True)
class Rights:
    """Whose a file is (-1: the writer's), and what others may do with it."""

    mode: int
    user: int = -1
    group: int = -1

    @classmethod
    def of(cls, path: Path) -> "Rights":
        """Raises OSError."""
        found = path.stat()
        return cls(stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid)


def write_whole(path: Path, text: str, rights: Rights | None = None) -> None:
    """One small file, whole or as it was. `rights`: that it has (default: what a new file has). Raises OSError, also where the
    writer may not give it those rights."""
    with tempfile.TemporaryDirectory(dir=path.parent) as work:  # gone again whatever fails
        whole = Path(work) / path.name
        whole.write_text(text, "utf-8")
        if rights is not None:
            os.chown(whole, rights.user, rights.group)
            whole.chmod(rights.mode)
        os.replace(whole, path)


def _move(staging: Path, folder: Path, last: Sequence[str], outdated: Iterable[str]) -> None:
    names = [path.relative_to(staging) for path in sorted(staging.rglob("*")) if not path.is_dir()]
    for name in names:
        flush(staging / name)
    for old in (*reversed(last), *outdated):
        _remove(folder, Path(old))
    places = {name: place for place, name in enumerate(last, start=1)}
    for name in sorted(names, key=lambda name: places.get(name.as_posix(), 0)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).replace(folder / name)
    for place in {(folder / name).parent for name in names}:
        flush(place)


def _remove(folder: Path, name: Path) -> None:
    """One file, and the folders that it leaves empty."""
    (folder / name).unlink(missing_ok=True)
    for place in name.parents[:-1]:
        with suppress(OSError):  # not empty, or not there
            (folder / place).rmdir()


def flush(path: Path) -> None:
    """Return once a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
