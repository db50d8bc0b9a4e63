"""Processes that a server starts beside itself. Torch-free."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM)


_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def die_with(parent: int) -> None:
    """From now on the kernel kills this process when the thread that started it ends, however that ends, and at once where
    `parent`, its process, has gone before."""
    ctypes.CDLL(None, use_errno=True).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def sheltered() -> Iterator[None]:
    """What is started within never gets SIGINT or SIGTERM, from its first instruction on: a terminal, or systemd, sends them to all
    processes of a server, which ends the others itself when they have done what is under way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # this thread's, which its children inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
