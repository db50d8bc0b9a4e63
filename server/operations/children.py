"""Processes that a server starts beside itself. Torch-free."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def sheltered() -> Iterator[None]:
    """What is started within never gets SIGINT or SIGTERM, from its first instruction on: a terminal, or systemd, sends them to all
    processes of a server, which ends the others itself when they have done what is under way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # this thread's, which its children inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
