"""Threads that take work in turns of the clients who wait for it. Knows nothing of adapters."""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from graft.hub.errors import GraftError
from graft.server.errors import BrokenError, ClosedError
from graft.server.fair_queue import FairQueue
from graft.server.interest import Interest
from graft.server.leaving import LeavableThread

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 1.0  # while nothing may begin, should nobody have been able to say that it may


@dataclass(frozen=True, eq=False)
class _Job:
    client: Hashable
    work: Callable[[], None]
    failed: Callable[[GraftError], None]


class WorkPool:
    """Up to `threads` threads, each started when there is work for it. Safe for many threads.

    They are daemons: one that hangs on a network neither outlives the process nor keeps it. `begin` is called once on each.
    `each`: how many of them one client has at once at most; all of them where nothing is said. `may_begin`: whether anything may;
    it takes no lock, and `look_again` says that it may have changed.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        begin: Callable[[], None] = lambda: None,
        *,
        each: int | None = None,
        may_begin: Callable[[], bool] = lambda: True,
    ):
        self._name = name
        self._most = threads
        self._each = threads if each is None else each
        self._begin = begin
        self._may_begin = may_begin
        self._changed = threading.Condition()
        self._waiting: FairQueue[_Job] = FairQueue()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stalled_since: float | None = None
        self._closed = False

    @property
    def stalled_s(self) -> float:
        """Seconds for which something has waited and nothing may begin; 0 where that is not so. Takes no lock."""
        since = self._stalled_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(
        self,
        client: Hashable,
        work: Callable[[], None],
        failed: Callable[[GraftError], None],
        interest: Interest | None = None,
    ) -> None:
        """Do something for a client, in its turn; where `interest` is over before it begins it is forgotten.

        `failed` is told whatever it raises, and of `close` where that comes before it begins. Raises ClosedError afterwards, and
        BrokenError where there is no thread and none can be started: then `failed` is not told.
        """
        job = _Job(client, work, failed)
        with self._changed:
            if self._closed:
                raise ClosedError("The server is shutting down.")
            if len(self._waiting) >= self._idle and len(self._threads) < self._most:
                self._start_thread()
            self._waiting.push(client, client, job)  # a client's one line, so that it can be woken
            self._changed.notify()
        if interest is not None:
            interest.then(partial(self._forget, job))

    def _forget(self, job: _Job) -> None:
        """Take it back, unless it has begun."""
        with self._changed, suppress(KeyError):
            self._waiting.remove(job.client, job.client, job)

    def look_again(self) -> None:
        """Something may begin that might not before."""
        with self._changed:
            self._changed.notify_all()

    def close(self, wait_s: float) -> None:
        """Begin nothing more; wait so long at most for what is under way. Again: wait on."""
        with self._changed:
            self._closed = True
            left = [*self._waiting]
            for job in left:
                self._waiting.remove(job.client, job.client, job)
            self._changed.notify_all()
        for job in left:
            self._try(partial(job.failed, ClosedError("The server is shutting down.")))
        deadline = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        """One more. Where the system allows none (a limit on processes), those that are there do the work."""
        thread = LeavableThread(self._live, f"{self._name}-{len(self._threads)}")
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("a thread of %s could not be started: %s", self._name, error)
            if not self._threads:
                raise BrokenError(f"A thread of {self._name} could not be started: {error}") from error
        else:
            self._threads.append(thread)

    def _live(self) -> None:
        self._try(self._begin)
        while (job := self._next()) is not None:
            try:
                job.work()
            except GraftError as error:
                self._try(partial(job.failed, error))
            except BaseException as error:  # the thread is everybody's, the failure this job's alone
                log.exception("work on a thread of %s failed", self._name)
                self._try(partial(job.failed, BrokenError(f"{type(error).__name__}: {error}")))
            self._release(job.client)
            del job  # its memory is free while the thread waits for the next

    def _try(self, work: Callable[[], None]) -> None:
        """Nothing ends a thread of the pool."""
        try:
            work()
        except BaseException:
            log.exception("a thread of %s could not say what went wrong", self._name)

    def _next(self) -> _Job | None:
        """The next piece of work; waits for one. None at the end."""
        with self._changed:
            self._idle += 1
            while not (self._closed or self._may_go_on()):
                self._changed.wait(None if self._may_begin() else _LOOK_AGAIN_S)
            self._idle -= 1
            return None if self._closed else self._waiting.pop()

    def _may_go_on(self) -> bool:
        """Whether there is something to begin, and it may. Called with the lock."""
        may = self._may_begin()
        if may or not self._waiting:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = time.monotonic()
        return may and self._waiting.peek(self._has_threads) is not None

    def _has_threads(self, job: _Job) -> bool:
        """Whether its client may have one more."""
        return self._waiting.holds(job.client) < self._each

    def _release(self, client: Hashable) -> None:
        """A client has a thread less; this one goes on to what is next."""
        with self._changed:
            self._waiting.release(client)
            self._waiting.wake(client)
