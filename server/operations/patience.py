"""How long somebody waits for an answer: until the client has gone, the time is over, or the server ends. Torch-free."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty
from typing import Protocol, TypeVar

from graft.hub.errors import GraftError
from graft.server.operations.drain import DrainingError

LOOK_S = 0.5  # how often a silent client is looked after while nothing comes

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class Disconnected(Exception):
    """The client has gone; nobody reads the answer."""


class DeadlineError(GraftError):
    """The answer is not there in time."""

    status = 408  # as OpenAI has it: who asked set the time, and nothing is wrong with the server
    code = "deadline_exceeded"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The answer was not complete within {seconds:g} s: ask for fewer tokens, give it a longer timeout, or ask when "
            "less is going on."
        )


class Source(Protocol[Item_co]):
    """Where something is waited for: a queue."""

    @property
    def get(self) -> Callable[..., Item_co]: ...


@dataclass(frozen=True)
class Patience:
    """Of one request. `seconds`: that it may take, from `began` (a `time.monotonic()`) on."""

    gone: Callable[[], bool]
    draining: Callable[[], bool]
    seconds: float = math.inf
    began: float = 0.0

    def within(self, seconds: float | None) -> "Patience":
        """With a time of its own, as far as that is shorter."""
        return self if seconds is None or seconds >= self.seconds else replace(self, seconds=seconds)

    def look(self, *, elsewhere: bool = False) -> float:
        """The seconds to wait at most before the next look.

        `elsewhere`: nothing has begun yet, so that another server may as well answer. Raises Disconnected, DeadlineError, or,
        only then, DrainingError.
        """
        if self.gone():
            raise Disconnected
        left = self.began + self.seconds - time.monotonic()
        if left <= 0:
            raise DeadlineError(self.seconds)
        if elsewhere and self.draining():
            raise DrainingError
        return min(LOOK_S, left)

    def take(self, source: Source[Item], *, elsewhere: bool = False) -> Item:
        """The next thing that comes. Raises as `look`."""
        while True:
            try:
                return source.get(timeout=self.look(elsewhere=elsewhere))
            except Empty:
                continue


ENDLESS = Patience(gone=lambda: False, draining=lambda: False)
