"""How many threads compute: one fewer for every core that other processes keep busy.

Threads that meet after every operator are as fast as the slowest of them, and one that has to share its core waits there for
a time slice (some milliseconds) again and again: two threads beside one busy process are slower than one.
"""

import math
import os
import threading
import time
from collections.abc import Callable

import torch

from graft.hub.machine.cpu_load import QUIET_CORES, Load, usable_cores

_LOOK_S = 0.25  # between looks at the load, each some 0.2 ms
FIXED = "OMP_DYNAMIC"  # "false": the user wants as many as there are (OpenMP's name for it)


class ComputeThreads:
    """Of the thread that enters it: torch's number is the most there will be, and comes back at the end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, look: Callable[[], Load] = Load):
        self._clock, self._look = clock, look
        self._fixed = os.environ.get(FIXED, "").lower() == "false"

    def __enter__(self) -> "ComputeThreads":
        self._most = torch.get_num_threads()
        self._load, self._looked = self._look(), self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._most)

    def fit(self) -> None:
        """Between steps: as many threads as there are cores for."""
        if self._fixed or self._most == 1 or self._clock() - self._looked < _LOOK_S:
            return
        taken = math.ceil(self._load.cores().other - QUIET_CORES)
        self._load, self._looked = self._look(), self._clock()
        self._set(max(1, min(self._most, len(usable_cores()) - taken)))

    def _set(self, number: int) -> None:
        if number != torch.get_num_threads():
            torch.set_num_threads(number)


def compute_alone() -> None:
    """Let this thread compute on one core: beside threads that have the cores its helpers would be asleep whenever they are
    wanted, and in the others' way when they are not.

    torch's call is about the calling thread, but also about all that start later, so another one takes that back.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = threading.Thread(target=torch.set_num_threads, args=(before,))
    thread.start()
    thread.join()
