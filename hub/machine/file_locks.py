"""`flock`, which the system gives back when a process dies, with a bound on the wait for it."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graft.hub.errors import ConflictError, GraftError

POLL_S = 0.05


class NoLocksError(GraftError):
    """A file system that has none, as some mounts over a network."""


def lock(descriptor: int, kind: int, wait_s: float, busy: str) -> None:
    """`kind`: LOCK_SH or LOCK_EX. Raises ConflictError(`busy`) where it isn't had after `wait_s`, NoLocksError."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise ConflictError(busy) from None
        except OSError as error:
            raise NoLocksError(
                f"The file system can't lock files ({error.strerror}): mount it with locks, or run this on the machine "
                f"that it belongs to."
            ) from None
        time.sleep(POLL_S)


@contextmanager
def alone_in(folder: Path, wait_s: float) -> Iterator[None]:
    """`folder`, made where it isn't there, is this writer's alone: by a lock on itself, so that no file lies in it.

    Raises ConflictError where another is still writing after `wait_s`. On a file system without locks nobody waits.
    """
    descriptor = _held(folder, wait_s)
    try:
        yield
    finally:
        os.close(descriptor)


def _held(folder: Path, wait_s: float) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            lock(descriptor, fcntl.LOCK_EX, wait_s, f"Another process writes to {folder}: try again when it is done.")
            if _is_still(folder, descriptor):
                return descriptor
        except NoLocksError:
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who had the lock has failed, and taken the new folder away


def _is_still(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
