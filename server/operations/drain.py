"""How a server ends without losing a request: it takes no new ones, and waits for those under way. Torch-free."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from graft.hub.errors import GraftError

log = logging.getLogger("graft.server")
QUIET_S = 0.3  # with nothing under way, so that who was about to ask is told to go elsewhere
_LOOK_S = 0.05
_TELL_S = 5.0


class DrainingError(GraftError):
    """The server ends, and takes nothing new."""

    status = 503
    code = "draining"

    def __init__(self) -> None:
        super().__init__("The server is about to end and takes no new requests: ask another one, or again in a moment.")


@dataclass(frozen=True)
class Draining:
    """What a drain asks of its process's server: how many requests are under way, and to take no more connections."""

    under_way: Callable[[], int]
    close_door: Callable[[], None]


class Drain:
    """Of one process that answers. Safe for many threads."""

    def __init__(self) -> None:
        self._begun = threading.Event()

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def begin(self, seconds: float, server: Draining, done: Callable[[], None]) -> None:
        """Take no new requests; call `done` on a thread when none is under way any more, or after so many seconds."""
        self._begun.set()
        threading.Thread(target=self._wait, args=(seconds, server, done), name="graft-drain", daemon=True).start()

    def _wait(self, seconds: float, server: Draining, done: Callable[[], None]) -> None:
        began = time.monotonic()
        log.info("draining: %d requests under way, %.0f s at most", server.under_way(), seconds)
        _await_quiet(began + seconds, server)
        server.close_door()
        _await_quiet(began + seconds, server)
        log.info("drained in %.1f s; %d requests are cut off", time.monotonic() - began, server.under_way())
        done()


def _await_quiet(end: float, server: Draining) -> None:
    """Until nothing has been under way for a moment."""
    quiet_since = told = time.monotonic()
    while (now := time.monotonic()) < end and now < quiet_since + QUIET_S:
        if left := server.under_way():
            quiet_since = now
        if now >= told + _TELL_S:
            told = now
            log.info("draining: %d requests under way, %.0f s left", left, end - now)
        time.sleep(_LOOK_S)
