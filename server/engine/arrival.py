"""What a request needs before it is scheduled: the compiled form of its constraint, then its adapter in host memory.

Asked for on the caller's thread, answered on the compiler's and the loader's. Whatever fails on the way is told to the request.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from graft.hub.errors import GraftError
from graft.server.adapters.host import HostTier, LoadResult
from graft.server.engine.consumers import RunningRequest
from graft.server.engine.messages import Inbox, Placed
from graft.server.errors import BrokenError, ConstraintError
from graft.server.interest import Interest
from graft.server.structured.compiler import Compiler
from graft.server.structured.matcher import Matcher

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Arrival:
    """The way of one request from its caller to the engine's thread, which gets a `Placed` at its end, whatever happens."""

    running: RunningRequest
    interest: Interest  # of who waits for the adapter
    compiler: Compiler
    loader: HostTier
    inbox: Inbox

    def begin(self) -> None:
        request = self.running.stream.request
        if request.constraint is None:
            self._load(None)
            return
        with self._telling():
            self.compiler.request(
                request.constraint, self.running.ends, request.client, self._load, holds_end=self.running.holds_end
            )

    def _load(self, matcher: Matcher | GraftError | None) -> None:
        request = self.running.stream.request
        with self._telling():
            if isinstance(matcher, GraftError):
                self._place(matcher)
                return
            self.running.matcher = matcher
            if request.model is None:
                self._place(None)
            else:
                self.loader.request(request.model, request.client, self._place, self.interest)

    def _place(self, answer: LoadResult | None) -> None:
        """Who answers hears of no failure: a request that could not be told is told that, and holds nothing."""
        try:
            self.inbox.post(Placed(self.running, answer))
        except Exception as error:
            log.exception("an answer for %s could not be handed on", self.running.stream.request.model)
            if isinstance(answer, tuple):
                self.loader.release(answer[0])
            self.inbox.post(Placed(self.running, BrokenError(f"{type(error).__name__}: {error}")))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What fails in asking for what it needs, on whatever thread, is told to the request."""
        try:
            yield
        except ConstraintError as error:
            self._place(error)
        except Exception as error:
            model = self.running.stream.request.model
            log.exception("asking for %s failed", model)
            self._place(BrokenError(f"Asking for {model} failed: {type(error).__name__}: {error}"))
