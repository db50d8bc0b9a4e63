"""Threads that let the others go first: they take what those spare of the cores."""

import os
import sys
import threading
from collections.abc import Callable

_NICE, _NICEST = 10, 19  # steps further back; the last there is


def step_back() -> None:
    """This thread, from now on; where threads have no priorities of their own, nothing."""
    if sys.platform == "linux":
        this = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, this)  # a server that is nicer itself may not take that back
        os.setpriority(os.PRIO_PROCESS, this, min(_NICEST, own + _NICE))


def aside(work: Callable[[], None], name: str) -> threading.Thread:
    """Begin it on such a thread, which ends with the process."""

    def stepped_back() -> None:
        step_back()
        work()

    thread = threading.Thread(target=stepped_back, name=name, daemon=True)
    thread.start()
    return thread
