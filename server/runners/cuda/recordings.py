"""What is recorded, by shape. A shape that can't be is done another way, and tried again after a while; the others go on.

Knows nothing of what is recorded.
"""

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from graft.server.runners.cuda.graphs import GraphError

log = logging.getLogger(__name__)
_FIRST_WAIT, _LONGEST_WAIT = 30.0, 3600.0  # seconds until a shape is tried again; each failure doubles them

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a function without arguments to one that does the same on what then lies at the same addresses."""
Key = TypeVar("Key", bound=Hashable)
Made = TypeVar("Made")


@dataclass(frozen=True)
class Refusal:
    """A shape that could not be recorded: not tried before `until`, which is `wait` seconds after the failure."""

    wait: float
    until: float


class Recordings(Generic[Key, Made]):
    """Recorded functions by their shapes."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic):
        """`what`: is recorded, as the log calls it."""
        self._what, self._clock = what, clock
        self._made: dict[Key, Made] = {}
        self._refused: dict[Key, Refusal] = {}

    @property
    def working(self) -> bool:
        """Whether anything is recorded, or nothing has failed to be."""
        return bool(self._made) or not self._refused

    def get(self, key: Key, make: Callable[[], Made]) -> Made | None:
        """What is recorded for a shape, by `make` if it is the first time. None where that failed, now or a short while ago:
        with GraphError or for want of memory."""
        made = self._made.get(key)
        if made is not None:
            return made
        refusal = self._refused.get(key)
        if refusal is not None and self._clock() < refusal.until:
            return None
        try:
            made = make()
        except (GraphError, torch.OutOfMemoryError) as reason:
            wait = _FIRST_WAIT if refusal is None else min(2 * refusal.wait, _LONGEST_WAIT)
            self._refused[key] = Refusal(wait, self._clock() + wait)
            log.warning("%s: one shape goes on without a CUDA graph for %.0f s. %s", self._what, wait, reason)
            return None
        self._refused.pop(key, None)
        self._made[key] = made
        return made

    def forget(self, gone: Callable[[Key], bool]) -> None:
        """Shapes that won't be asked for again."""
        self._made = {key: made for key, made in self._made.items() if not gone(key)}
        self._refused = {key: refusal for key, refusal in self._refused.items() if not gone(key)}
