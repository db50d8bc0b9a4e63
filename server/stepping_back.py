"""Threads that let the others go first: they take what those spare of the cores."""

import os
import sys
import threading

_NICE, _NICEST = 10, 19  # steps further back; the last there is


def step_back() -> None:
    """This thread, from now on; where threads have no priorities of their own, nothing."""
    if sys.platform == "linux":
        this = threading.get_native_id()
        own = os.getpriority(os.PRIO_PROCESS, this)  # a server that is nicer itself may not take that back
        os.setpriority(os.PRIO_PROCESS, this, min(_NICEST, own + _NICE))
