"""How long a thread of this process keeps Python's interpreter after another one has asked for it."""

import sys

_SWITCH_S = 0.0005  # Python's own is 5 ms


def hand_on_soon() -> None:
    """For a process whose one thread must not be held up by others: a server's engine by its loaders and HTTP threads.

    It holds for the whole process, so only a command sets it, never a library.
    """
    sys.setswitchinterval(_SWITCH_S)
