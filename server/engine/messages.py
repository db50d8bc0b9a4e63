"""What other threads send to the engine's: each message does one thing there, and knows whom to tell when that fails.

The engine's thread takes them out of its `Inbox`, and sleeps there while there are none.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from graft.hub.errors import GraftError
from graft.server.errors import ClosedError, EndedError

if TYPE_CHECKING:
    from graft.server.adapters.device import DeviceTier
    from graft.server.adapters.host import HostTier, LoadResult
    from graft.server.adapters.resident import Resident
    from graft.server.cache.blocks import BlockPool
    from graft.server.engine.consumers import Consumer, RunningRequest
    from graft.server.engine.ledger import Ledger
    from graft.server.engine.scheduler import Scheduler
    from graft.server.runners.protocol import Prepared

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class EngineSide(Protocol):
    """What messages reach: the parts of an engine that its thread alone may touch."""

    blocks: "BlockPool"
    loader: "HostTier"
    residency: "DeviceTier"
    scheduler: "Scheduler"
    ledger: "Ledger"

    @property
    def steps(self) -> int:
        """Begun so far."""

    def place(self, request: "RunningRequest", answer: "LoadResult | None") -> None:
        """The adapter is in host memory (or there is none, or an error): schedule the request."""


class Message(ABC):
    """Handled once, on the engine's thread."""

    @abstractmethod
    def handle(self, engine: EngineSide) -> None: ...

    @abstractmethod
    def fail(self, engine: EngineSide, error: GraftError) -> None:
        """`handle` raised, or nobody will call it any more: tell whoever waits for it. On the engine's thread too."""


@dataclass(frozen=True)
class Opened(Message):
    """A request has come in; its adapter, if it wants one, is on its way to host memory."""

    request: "RunningRequest"

    def handle(self, engine: EngineSide) -> None:
        engine.ledger.open(self.request)

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        engine.ledger.open(self.request)
        engine.ledger.fail(self.request, error)


@dataclass(frozen=True)
class Placed(Message):
    """A request's adapter is in host memory, held for it, or can't be had. None: the bare base needs none."""

    request: "RunningRequest"
    answer: "LoadResult | None"

    def handle(self, engine: EngineSide) -> None:
        engine.place(self.request, self.answer)

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        if isinstance(self.answer, tuple) and self.request in engine.ledger:
            self.request.loaded = self.answer[0]  # it is held, whether `handle` has come to that or not
        engine.ledger.fail(self.request, error)


@dataclass(frozen=True)
class Masked(Message):
    """Which tokens may come next is known of a request that missed its draw for it."""

    request: "Consumer"

    def handle(self, engine: EngineSide) -> None:
        if self.request in engine.ledger:
            engine.scheduler.repeat(self.request.sequence)

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        engine.ledger.fail(self.request, error)


@dataclass(frozen=True)
class Cancelled(Message):
    """Nobody waits for a request any more."""

    request: "RunningRequest"

    def handle(self, engine: EngineSide) -> None:
        engine.ledger.cancel(self.request)

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        engine.ledger.fail(self.request, error)


@dataclass(frozen=True)
class DetoursPrepared(Message):
    """What a loader's thread has made of an adapter's detours, or why it could not."""

    resident: "Resident"
    made: "Prepared | GraftError"

    def handle(self, engine: EngineSide) -> None:
        engine.residency.add_to_runner(self.resident, self.made)

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        engine.residency.refuse(self.resident, error)


@dataclass(frozen=True)
class Refused(Message):
    """An adapter can't be served: who waits for it fails, but not who asks later, for another copy's probe may hold."""

    waiting: "Sequence[Consumer]"
    error: GraftError

    def handle(self, engine: EngineSide) -> None:
        for consumer in self.waiting:
            engine.ledger.fail(consumer, self.error)

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        for consumer in self.waiting:
            engine.ledger.fail(consumer, error)


@dataclass(frozen=True)
class Wake(Message):
    """Something outside of the inbox has changed: the engine closes."""

    def handle(self, engine: EngineSide) -> None:
        pass

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Ask(Message, Generic[Value]):
    """A question whose asker waits for `answer`."""

    answer: "Future[Value]" = field(default_factory=Future, init=False)

    @abstractmethod
    def find(self, engine: EngineSide) -> Value:
        """The answer. What it raises, the asker gets."""

    def handle(self, engine: EngineSide) -> None:
        self.answer.set_result(self.find(engine))

    def fail(self, engine: EngineSide, error: GraftError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Inbox:
    """`put` on any thread; the rest on the engine's."""

    def __init__(self) -> None:
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._filled = threading.Event()
        self._lock = threading.Lock()
        self._closed: GraftError | None = None
        self._last_here = time.monotonic()  # when the engine's thread last came here
        self._waiting = False  # whether it is here

    @property
    def away_s(self) -> float:
        """Seconds since the engine's thread was last here; 0 while it waits for a message. Asked on any thread."""
        return 0.0 if self._waiting else time.monotonic() - self._last_here

    def put(self, message: Message) -> None:
        """Raises what `close` was given where nobody will read the message."""
        with self._lock:
            if self._closed is not None:
                raise type(self._closed)(str(self._closed))
            self._messages.put(message)
        self._filled.set()

    def post(self, message: Message) -> None:
        """Put a message that nobody needs once the engine has ended: whom it is about has been told."""
        with suppress(ClosedError, EndedError):
            self.put(message)

    def end(self, engine: EngineSide, reason: GraftError, at_hand: Message | None) -> None:
        """Nothing can be put from now on; the last messages fail, and the one that was being handled."""
        with self._lock:
            self._closed = self._closed or reason
        for message in [*([] if at_hand is None else [at_hand]), *self.take(wait=False)]:
            try:
                message.fail(engine, reason)
            except BaseException:
                log.exception("a message could not be failed")

    def is_empty(self) -> bool:
        """Whether nothing has come in, as the engine's thread asks when it passes by between two steps."""
        self._last_here = time.monotonic()
        return self._messages.empty()

    def take(self, *, wait: bool, timeout: float | None = None) -> Iterator[Message]:
        """All messages so far, one by one; waits for the first if asked to. What is not taken stays."""
        if wait:
            self._waiting = True
            self._filled.wait(timeout)
        self._last_here = time.monotonic()
        self._waiting = False
        self._filled.clear()
        for _ in range(self._messages.qsize()):
            yield self._messages.get()
