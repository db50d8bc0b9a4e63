"""One lock a folder of blobs: who counts on every file staying (backup, check) shares it, `gc` has it alone.

It is `flock` on a file in the folder, which the system gives back when a process dies. On NFS it works between machines
where the server keeps locks (version 4 does); a mount without them is refused in words. Where the folder can't be
written, the file is opened for reading, which is enough to share the lock; a file that was never made there needs none,
since whoever could collect garbage would have to make it, and can't from here.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.hub.machine.file_locks import lock

LOCK = "lock"
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT)


@contextmanager
def share_folder(folder: Path, wait_s: float = 60.0) -> Iterator[None]:
    """Nothing is collected in `folder` meanwhile. Raises ConflictError when `gc` takes longer than `wait_s`."""
    descriptor = _open_to_share(folder)
    if descriptor is None:
        yield
        return
    try:
        lock(descriptor, fcntl.LOCK_SH, wait_s, f"Garbage is being collected in {folder}: try again when that is done.")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def own_folder(folder: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """`folder` is this caller's alone. Raises ConflictError(`busy`) when it isn't so after `wait_s`."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor, fcntl.LOCK_EX, wait_s, busy)
        yield
    finally:
        os.close(descriptor)


def _open_to_share(folder: Path) -> int | None:
    try:
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
    try:
        return os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
