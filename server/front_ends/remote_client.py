"""The engine as a front end has it: in another process, reached over a socket. Torch-free.

One thread reads what comes in and hands it to who waits for it. When the engine's process has gone, or says that it ends,
everybody who waits gets an error at once, and so does whoever asks later.
"""

import logging
import socket
import threading
from collections.abc import Callable, Sequence
from io import BufferedReader
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from types import NoneType
from typing import TypeVar

from graft.hub.chat.words import AdapterWords
from graft.hub.errors import GraftError
from graft.server.carriers import Carriers
from graft.server.engine.client import EngineClient, EngineStats
from graft.server.engine.inventory import AdapterEntry, Placed
from graft.server.engine.request import Outlet, Request, Result, Sink, Stream, generate
from graft.server.errors import ClosedError, EndedError
from graft.server.front_ends.frames import (
    Answered,
    BeginDrain,
    Call,
    Cancel,
    Close,
    Coded,
    Drained,
    GiveUp,
    Message,
    Ready,
    Start,
    Submit,
    decode_event,
    is_last,
    message_frame,
    read_frames,
)
from graft.server.interest import Interest
from graft.server.keys.accounts import AnyAccounts
from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.standing import Standing
from graft.server.keys.usage import Usage
from graft.server.operations.patience import ENDLESS, Patience
from graft.server.replica_state import ReplicaState
from graft.server.served_version import Served

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class RemoteClient(EngineClient):
    """Safe for many threads. `run` reads, on a thread of its own. `reason`: why the engine can't be reached any more."""

    def __init__(self, sock: socket.socket, file: BufferedReader, start: Start):
        """`file`: reads from `sock`, after `start`, the first message."""
        self.base = start.base
        self.accounts: AnyAccounts = _RemoteAccounts(self)
        self.reason: GraftError | None = None
        self.ended = threading.Event()  # everybody has been told
        self._socket = sock
        self._file = file
        self._sending = threading.Lock()
        self._numbers = count()
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, Callable[[object], None]] = {}
        self._carriers = Carriers()

    # Requests

    def submit(self, request: Request, sink: Sink | Outlet | None = None) -> Stream:
        """What can't be served is told by the stream; raises ClosedError or EndedError alone."""
        number = next(self._numbers)

        def cancel() -> None:
            if number in self._streams:
                self._tell(Cancel(number))

        stream = self._streams[number] = Stream(request, cancel, sink or SimpleQueue())
        try:
            self._send(Submit(number, request))
        except GraftError:
            self._streams.pop(number, None)
            raise
        return stream

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        return generate(requests, self.submit)

    def after_steps(self, carry: Callable[[], None]) -> Callable[[], None]:
        return self._carriers.add(carry)

    # Adapters

    def ask_words(
        self, name: str, client: str, done: Callable[[AdapterWords | GraftError], None], interest: Interest
    ) -> None:
        def answered(value: object) -> None:
            assert isinstance(value, AdapterWords | GraftError)
            done(value)

        number = self._call("ask_words", answered, name, client)
        interest.then(lambda: self._give_up(number))

    def models(self) -> list[AdapterEntry]:
        return self._ask(list, "models")

    def model(self, name: str, client: str = "", patience: Patience = ENDLESS) -> AdapterEntry:
        return self._ask(AdapterEntry, "model", name, client, patience=patience)

    def asks_hub(self, name: str) -> bool:
        return self._ask(bool, "asks_hub", name)

    def known_model(self, name: str) -> AdapterEntry:
        return self._ask(AdapterEntry, "known_model", name)

    def adapters(self) -> dict[str, Placed]:
        return self._ask(dict, "adapters")

    def served(self, name: str) -> Served:
        return self._ask(Served, "served", name)

    def shelf_names(self, names: Sequence[str]) -> dict[str, str]:
        return self._ask(dict, "shelf_names", names)

    def load(self, name: str, client: str = "", weight: float = 1.0, patience: Patience = ENDLESS) -> Served:
        return self._ask(Served, "load", name, client, weight, patience=patience)

    def unload(self, name: str) -> Served:
        return self._ask(Served, "unload", name)

    def pin(
        self, name: str, pinned: bool, client: str = "", weight: float = 1.0, patience: Patience = ENDLESS
    ) -> Served:
        return self._ask(Served, "pin", name, pinned, client, weight, patience=patience)

    def attach(
        self,
        name: str,
        target: Path | str,
        client: str = "",
        weight: float = 1.0,
        patience: Patience = ENDLESS,
        *,
        replace: bool = False,
    ) -> Served:
        return self._ask(Served, "attach", name, target, client, weight, patience=patience, replace=replace)

    def detach(self, name: str) -> bool:
        return self._ask(bool, "detach", name)

    # The engine itself

    def stats(self) -> EngineStats:
        return self._ask(EngineStats, "stats")

    def health(self) -> GraftError | None:
        try:
            self._ask(type(None), "health")
        except GraftError as reason:
            return reason
        return None

    def replica_state(self) -> ReplicaState:
        return self._ask(ReplicaState, "replica_state")

    def metrics(self) -> bytes:
        return self._ask(bytes, "metrics")

    def count_answer(self, route: str, status: int) -> None:
        self._tell(Call(None, "count_answer", (route, status)))

    # Places for answers (http/clients.py: Places)

    def enter(self, client: str) -> bool:
        return self._ask(bool, "enter", client)

    def leave(self, client: str) -> None:
        self._tell(Call(None, "leave", (client,)))

    # Accounts of keys (_RemoteAccounts)

    def enter_account(self, who: str, limits: Limits) -> Standing:
        return self._ask(Standing, "enter_account", who, limits)

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        return self._ask(Standing, "reserve", who, limits, tokens)

    def leave_account(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        if used is None:
            self._tell(Call(None, "leave_account", (who, limits, reserved, used)))
        else:  # there when it is written down: who gets an answer's last bytes is in the usage file, whoever is killed
            self._ask(NoneType, "leave_account", who, limits, reserved, used)

    # The connection

    def ready(self) -> None:
        """The front end answers."""
        self._send(Ready())

    def drained(self) -> None:
        """The front end has done what `run` was told to begin."""
        self._tell(Drained())

    def run(self, begin_drain: Callable[[float], None]) -> None:
        """Read until the engine's process has gone, or says that it ends. `begin_drain`: called where a drain is to begin, with
        the seconds that it may take."""
        reason: GraftError = EndedError("The engine's process has ended: restart the server. Its log says more.")
        try:
            for frame in read_frames(self._file):
                match frame:
                    case Answered():
                        if (answered := self._calls.pop(frame.call, None)) is not None:  # it has not been given up
                            answered(frame.value)
                    case BeginDrain():
                        begin_drain(frame.seconds)
                    case Close():
                        reason = ClosedError("The server is shutting down.")
                        return
                    case list():
                        self._deliver(frame)
                    case _:
                        raise AssertionError(f"an engine's process sends no {type(frame).__name__}")
        except BaseException:
            log.exception("reading from the engine's process failed")
        finally:
            self._end(reason)

    def _deliver(self, coding: Sequence[int | Coded]) -> None:
        pairs = iter(coding)
        for number, coded in zip(pairs, pairs, strict=True):
            assert isinstance(number, int)  # frames.Coding
            event = decode_event(coded)
            stream = self._streams.pop(number, None) if is_last(event) else self._streams.get(number)
            if stream is not None:
                stream.put(event)
        self._carriers.call()

    def _end(self, reason: GraftError) -> None:
        self.reason = reason
        for number in list(self._streams):
            if (stream := self._streams.pop(number, None)) is not None:
                stream.put(reason)
        for number in list(self._calls):
            if (answered := self._calls.pop(number, None)) is not None:
                answered(reason)
        self._carriers.call()
        self.ended.set()

    def _ask(
        self, kind: type[Value], name: str, *given: object, patience: Patience = ENDLESS, **named: object
    ) -> Value:
        """Have something done there, and wait for what comes of it. Raises what `patience` ends with."""
        answers: SimpleQueue[object] = SimpleQueue()
        number = self._call(name, answers.put, *given, **named)
        try:
            value = patience.take(answers, elsewhere=True)
        except BaseException:
            self._give_up(number)
            raise
        if isinstance(value, GraftError):
            raise value
        assert isinstance(value, kind)
        return value

    def _call(self, name: str, answered: Callable[[object], None], *given: object, **named: object) -> int:
        """The call's number, for `_give_up`."""
        number = next(self._numbers)
        self._calls[number] = answered
        try:
            self._send(Call(number, name, given, named))
        except GraftError:
            self._calls.pop(number, None)
            raise
        return number

    def _give_up(self, number: int) -> None:
        """Nobody waits for a call's answer."""
        if self._calls.pop(number, None) is not None:
            self._tell(GiveUp(number))

    def _tell(self, message: Message) -> None:
        """Send what nobody needs once the engine's process has gone."""
        try:
            self._send(message)
        except GraftError:
            return

    def _send(self, message: Message) -> None:
        if self.reason is not None:
            raise type(self.reason)(str(self.reason))
        frame = message_frame(message)
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError:
            raise EndedError("The engine's process has ended: restart the server.") from None


class _RemoteAccounts:
    """AnyAccounts, where the engine is. Of who has no limits nothing is asked."""

    def __init__(self, client: RemoteClient):
        self._client = client

    def enter(self, who: str, limits: Limits) -> Standing:
        return Standing() if limits == UNLIMITED else self._client.enter_account(who, limits)

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        return Standing() if limits == UNLIMITED else self._client.reserve(who, limits, tokens)

    def leave(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        if limits != UNLIMITED or used is not None:
            self._client.leave_account(who, limits, reserved, used)
