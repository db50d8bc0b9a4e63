"""Who carries the events of many streams at once: each is called when events have been put and no more are at hand."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Carriers:
    """Safe for many threads: front ends and pumps come and go while others are called."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._all: tuple[Callable[[], None], ...] = ()  # replaced whole: `call` may be going through it

    def add(self, carry: Callable[[], None]) -> Callable[[], None]:
        """Have it called from now on. Returns what ends that."""
        with self._changing:
            self._all += (carry,)

        def end() -> None:
            with self._changing:
                self._all = tuple(one for one in self._all if one is not carry)

        return end

    def call(self) -> None:
        """All of them, whatever one raises."""
        for carry in self._all:
            try:
                carry()
            except Exception:
                log.exception("events could not be carried")
