"""What holds up a thread of this process within Python's interpreter: threads that don't hand it on, and the garbage collector.

Both hold for the whole process, so only a command sets them, never a library.
"""

import gc
import sys

_SWITCH_S = 0.0005  # Python's own is 5 ms


def hand_on_soon() -> None:
    """For a process whose one thread must not be held up by others: a server's engine by its loaders and HTTP threads."""
    sys.setswitchinterval(_SWITCH_S)


def keep_what_is_there() -> None:
    """Once all is loaded: the garbage collector looks at none of it any more, which for torch's modules and a base's took 0.3 s
    at a time, in which nobody got a token.
    """
    gc.collect()
    gc.freeze()
