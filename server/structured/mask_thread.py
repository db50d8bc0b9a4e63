"""The thread that finds which tokens may come next, for all constrained rows of a step, beside the model's own work."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from llguidance import LLExecutor

from graft.server.errors import BrokenError
from graft.server.leaving import LEAVE_S, LeavableThread
from graft.server.structured.matcher import Matcher
from graft.server.structured.vocabulary import Mask

log = logging.getLogger(__name__)
LONG_S = 0.02  # a batch that takes longer holds its rows up: they are made one by one from then on
SHORT_S = 0.005


class MaskThread:
    """`begin`, `wait` and `when_ready` are for one other thread. Started with the first batch."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches: list[list[Matcher]] = []
        self._waiting: dict[Matcher, Callable[[], None]] = {}
        self._thread: LeavableThread | None = None
        self._executor = LLExecutor(num_threads=1)
        self._closed = False

    def begin(self, matchers: Sequence[Matcher]) -> None:
        """Bring those up to date that have taken a token and are not on their way already."""
        batch = [matcher for matcher in matchers if not (matcher.ready or matcher.begun)]
        if not batch:
            return
        for matcher in batch:
            matcher.begun = True
        try:
            self._start()
        except RuntimeError as error:  # the system allows no more threads
            self._fail(batch, error)
            return
        with self._changed:
            self._batches.append(batch)
            self._changed.notify_all()

    def wait(self, matchers: Sequence[Matcher], seconds: float) -> None:
        """Wait until all are ready, so long at most; who is not is `late` from now on."""
        with self._changed:
            self._changed.wait_for(lambda: all(matcher.ready for matcher in matchers), seconds)
            for matcher in matchers:
                matcher.late = not matcher.ready

    def when_ready(self, matcher: Matcher, tell: Callable[[], None]) -> None:
        """Have `tell` called, on any thread, when a late one is ready."""
        with self._changed:
            if not matcher.ready:
                self._waiting[matcher] = tell
                return
        tell()

    def close(self, wait_s: float = LEAVE_S) -> None:
        """Begin nothing more; wait so long at most for what is under way."""
        with self._changed:
            self._closed = True
            self._batches.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(wait_s)

    def _start(self) -> None:
        """With the first batch, and again where that could not be."""
        if self._thread is None:
            thread = LeavableThread(self._live, "graft-masks")
            thread.start()
            self._thread = thread

    def _live(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._batches)
                if self._closed:
                    return
                batch = [matcher for batch in self._batches for matcher in batch]
                self._batches.clear()
            apart = [matcher for matcher in batch if matcher.alone]
            self._make([matcher for matcher in batch if not matcher.alone])
            for matcher in apart:
                self._make([matcher])

    def _make(self, matchers: list[Matcher]) -> None:
        """Whatever fails costs the matcher that it fails for."""
        if not matchers:
            return
        began = time.monotonic()
        try:
            self._compute(matchers)
        except BaseException as error:  # the library's panics are no Exceptions
            if len(matchers) > 1:
                for matcher in matchers:
                    self._make([matcher])
                return
            self._fail(matchers, error)
            return
        long = time.monotonic() - began > (LONG_S if len(matchers) > 1 else SHORT_S)
        for matcher in matchers:
            matcher.alone = long
        self._tell(matchers)

    def _fail(self, matchers: Sequence[Matcher], error: BaseException) -> None:
        log.error("a mask could not be made", exc_info=error)
        for matcher in matchers:
            matcher.error = BrokenError(f"A mask could not be made: {type(error).__name__}: {error}")
        self._tell(matchers)

    def _compute(self, matchers: list[Matcher]) -> None:
        for matcher in matchers:
            matcher.consume()
        masks: Mask = np.empty((len(matchers), len(matchers[0].allowed)), np.uint32)
        rows = [(matcher.state, i) for i, matcher in enumerate(matchers)]
        self._executor.unsafe_compute_mask_ptr(rows, masks.ctypes.data, masks.strides[0], len(matchers))
        for matcher, mask in zip(matchers, masks, strict=True):
            matcher.show(mask)

    def _tell(self, matchers: Sequence[Matcher]) -> None:
        with self._changed:
            for matcher in matchers:
                matcher.ready, matcher.begun = True, False
            waiting = [tell for matcher in matchers if (tell := self._waiting.pop(matcher, None))]
            self._changed.notify_all()
        for tell in waiting:
            try:
                tell()
            except BaseException:
                log.exception("nobody could be told that a mask is ready")
                with suppress(BaseException):  # the others wait still
                    tell()  # once more, for who is told by nobody else
