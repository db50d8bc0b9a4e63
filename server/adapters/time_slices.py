"""Long work in short turns: a thread of its own that runs only while another one lets it, and waits in between.

So that a computation which can't be cut into steps by hand (a model's own forward) shares a core with a loop that must
not be held up.
"""

import logging
import threading
import time
from collections.abc import Callable

from graft.server.leaving import LEAVE_S, LeavableThread

log = logging.getLogger(__name__)


class Ended(BaseException):
    """The thread is asked to end in the middle of its work."""


class TimeSlices:
    """`start` gives it work, `go` lets it run for a while; the work calls `pause` wherever it can wait."""

    def __init__(self, name: str, begin: Callable[[], None] = lambda: None):
        """`begin`: called once, on the thread."""
        self._begin = begin
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._work: Callable[[], None] | None = None
        self._until = 0.0
        self._ended = self._dead = False
        self._thread = LeavableThread(self._live, name)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there to do work."""
        return not self._dead

    @property
    def busy(self) -> bool:
        """Whether there is work that is not done."""
        return self._work is not None

    def start(self, work: Callable[[], None]) -> None:
        """Work for the turns to come. Only where none is left; what it raises is logged, and ends it."""
        self._work = work

    def go(self, seconds: float) -> None:
        """One turn of about `seconds`, or what is left of the work; the caller waits. Does nothing without a thread."""
        if self._dead:
            return
        self._until = time.monotonic() + seconds
        self._go.release()
        self._back.acquire()

    def pause(self) -> None:
        """Called by the work: waits here where its turn is over."""
        if time.monotonic() >= self._until:
            self._back.release()
            self._await_turn()

    def close(self, wait_s: float = LEAVE_S) -> None:
        """End the thread, its work undone; wait so long at most for it to come to a `pause`."""
        self._ended = True
        self._go.release()
        self._thread.join(wait_s)

    def _await_turn(self) -> None:
        self._go.acquire()
        if self._ended:
            raise Ended

    def _live(self) -> None:
        try:
            self._begin()
            while True:
                self._await_turn()
                try:
                    if self._work is not None:
                        self._work()
                except Exception:  # whoever waits in `go` must not wait for a thread that is gone
                    log.exception("work in turns failed")
                self._work = None
                self._back.release()
        except Ended:
            pass
        except BaseException:
            log.exception("a thread of turns has ended")
        finally:  # nobody waits in `go` for a thread that is gone, nor begins to
            self._dead = True
            self._work = None
            self._back.release()
