"""Threads for long jobs beside the engine: each job has somebody who is told how it went wrong.

Daemon threads: one that hangs in a download is left behind when the process ends.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

from graft.hub.errors import GraftError
from graft.server.errors import BrokenError, ClosedError

log = logging.getLogger(__name__)

Job = tuple[Callable[[], None], Callable[[GraftError], None]]


class Workers:
    """Safe for many threads. Jobs begin in the order in which they were submitted."""

    def __init__(self, name: str, threads: int, begin: Callable[[], None] = lambda: None):
        """`begin`: called once on each thread; what it raises is logged."""
        self._begin = begin
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()  # None: a thread may end
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._live, name=f"{name}_{place}", daemon=True) for place in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], None], failed: Callable[[GraftError], None]) -> None:
        """Do `work` on one of the threads. Whatever it raises, or `close` before it begins, is told to `failed`.

        Raises ClosedError after `close`.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("The server is shutting down.")
            self._jobs.put((work, failed))

    def close(self, wait_s: float) -> bool:
        """No more jobs: those that have not begun fail. False where a thread is still busy after `wait_s` seconds."""
        with self._lock:
            self._closed = True
            dropped = []
            while not self._jobs.empty():
                dropped.append(self._jobs.get())
            for _ in self._threads:
                self._jobs.put(None)
        for _, failed in filter(None, dropped):
            _call(partial(failed, ClosedError("The server is shutting down.")))
        until = time.monotonic() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _live(self) -> None:
        _call(self._begin)
        while (job := self._jobs.get()) is not None:
            work, failed = job
            try:
                work()
            except GraftError as error:
                _call(partial(failed, error))
            except BaseException as error:  # the thread is everybody's, the failure this job's alone
                log.exception("a job beside the engine failed")
                _call(partial(failed, BrokenError(f"{type(error).__name__}: {error}")))
            del job, work, failed  # a job's memory is free while the thread waits for the next


def _call(work: Callable[[], None]) -> None:
    try:
        work()
    except BaseException:
        log.exception("a thread beside the engine could not say what went wrong")
