"""Threads that an end waits for a while, and then leaves to themselves: one that is in a library's C++ can't be ended."""

import threading
from collections.abc import Callable

# Of all threads of an engine together, from `close` on. Whoever waits for a step is told that it is over whether it comes back or
# not, and most last less than a second (step_pace.py): who takes longer is not waited for.
LEAVE_S = 5.0


class LeavableThread(threading.Thread):
    """A daemon, which does not keep the process; whoever ends that has to know whether one is left (`threads_left`)."""

    def __init__(self, work: Callable[[], None], name: str):
        super().__init__(target=work, name=name, daemon=True)


def threads_left() -> bool:
    """Whether any is still there."""
    return any(isinstance(thread, LeavableThread) for thread in threading.enumerate())
