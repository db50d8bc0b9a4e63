"""The engine's process's side of one front end: does what its messages ask, and carries the events of its streams to it.

Events go out in one frame for each step of the engine, sent by the engine's thread; where a front end lags far behind, a step
waits 20 ms for it at most. What a front end asks is done on threads of the session's own, as an HTTP thread of this process would. When the front end has gone its
requests are cancelled and its places given back.
"""

import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BufferedReader

from graft.hub.chat.words import AdapterWords
from graft.hub.errors import GraftError
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Event, Stream
from graft.server.errors import BrokenError
from graft.server.front_ends.frames import (
    Answered,
    BeginDrain,
    Call,
    Cancel,
    Close,
    Coding,
    Drained,
    GiveUp,
    Ready,
    Start,
    Submit,
    code_event,
    events_frame,
    is_last,
    message_frame,
    read_frames,
)
from graft.server.front_ends.outbox import Outbox
from graft.server.front_ends.places import PlacesTaken
from graft.server.http.clients import SPARE_THREADS, Places
from graft.server.interest import Interest
from graft.server.keys.held_accounts import AccountsHeld
from graft.server.operations.patience import ENDLESS, Disconnected

log = logging.getLogger(__name__)


class Session:
    """`run` it on a thread; it ends when the front end has gone, or `close` ends it. `drained`: of the front end's requests none
    is under way any more since `drain`, or it has gone."""

    def __init__(self, sock: socket.socket, engine: EngineClient, places: Places, start: Start, ready: threading.Event):
        """`ready`: set when the front end answers."""
        self.drained = threading.Event()
        self._engine = engine
        self._ready = ready
        self._places = PlacesTaken(places)
        self._accounts = AccountsHeld(engine.accounts)
        self._socket = sock
        self._outbox = Outbox(sock)
        self._coding: Coding = []  # of events that are not on their way yet
        self._streams: dict[int, Stream] = {}
        self._carry_lock = threading.Lock()
        # More than the front end has threads, each of which waits for one answer at most: none waits for another's.
        self._workers = ThreadPoolExecutor(2 * start.max_requests + SPARE_THREADS, "graft-front-end-call")
        self._calls: dict[str, Callable[..., object]] = {
            "models": engine.models,
            "asks_hub": engine.asks_hub,
            "known_model": engine.known_model,
            "adapters": engine.adapters,
            "served": engine.served,
            "unload": engine.unload,
            "detach": engine.detach,
            "stats": engine.stats,
            "health": engine.health,
            "replica_state": engine.replica_state,
            "metrics": engine.metrics,
            "count_answer": engine.count_answer,
            "shelf_names": engine.shelf_names,
            "enter": self._places.enter,
            "leave": self._places.leave,
            "enter_account": self._accounts.enter,
            "reserve": self._accounts.reserve,
            "leave_account": self._accounts.leave,
        }
        self._long_calls: dict[str, Callable[..., object]] = {  # which wait for an adapter or a hub, with patience
            "model": engine.model,
            "load": engine.load,
            "pin": engine.pin,
            "attach": engine.attach,
        }
        self._interests: dict[int, Interest] = {}  # in calls under way, by their numbers
        self._outbox.send(message_frame(start))

    def run(self) -> None:
        """Until the front end has gone."""
        stop_carrying = self._engine.after_steps(self._carry)
        try:
            with self._socket.makefile("rb") as file:
                self._read(file)
        finally:
            self._outbox.close()
            stop_carrying()
            for stream in list(self._streams.values()):
                stream.cancel()
            for interest in list(self._interests.values()):
                interest.end()
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._places.leave_all()
            self._accounts.leave_all()
            self._socket.close()
            self.drained.set()

    def drain(self, seconds: float) -> None:
        """Have the front end take no new requests, and end those under way within so many seconds."""
        self._outbox.send(message_frame(BeginDrain(seconds)))

    def close(self) -> None:
        """Tell the front end to end, which it does when it has said its last words."""
        self._outbox.send(message_frame(Close()))

    def _read(self, file: BufferedReader) -> None:
        for message in read_frames(file):
            match message:
                case Submit():
                    self._submit(message)
                case Cancel():
                    if (stream := self._streams.get(message.stream)) is not None:
                        stream.cancel()
                case Call():
                    self._begin(message)
                case GiveUp():
                    if (given_up := self._interests.pop(message.call, None)) is not None:
                        given_up.end()
                case Ready():
                    self._ready.set()
                case Drained():
                    self.drained.set()
                case _:
                    raise AssertionError(f"a front end sends no {type(message).__name__}")

    def _begin(self, asked: Call) -> None:
        """Have it done on a thread of the session's."""
        interest = Interest()
        if asked.call is not None:
            self._interests[asked.call] = interest
        self._workers.submit(self._ask_words if asked.name == "ask_words" else self._do, asked, interest)

    def _submit(self, asked: Submit) -> None:
        """What can't be served is told by the stream's events, like all that goes wrong later."""
        outlet = _StreamOutlet(asked.stream, self._coding, self._streams)
        try:
            stream = self._engine.submit(asked.request, outlet)
        except Exception as error:
            outlet.fail(_told(error, "A request could not be queued"))
            self._carry()
            return
        self._streams[asked.stream] = stream
        if outlet.ended:  # before it was entered
            self._streams.pop(asked.stream, None)

    def _carry(self) -> None:
        """Send what events there are: the engine calls it when there are no more at hand."""
        if not self._coding:
            return
        with self._carry_lock:
            count = len(self._coding)
            coding = self._coding[:count]
            del self._coding[:count]  # in place: outlets on other threads add to this very list
            self._outbox.send(events_frame(coding))
        self._outbox.let_catch_up()

    def _do(self, asked: Call, interest: Interest) -> None:
        value: object
        try:
            if (do := self._long_calls.get(asked.name)) is not None:
                value = do(*asked.given, **asked.named, patience=replace(ENDLESS, gone=lambda: interest.over))
            else:
                value = self._calls[asked.name](*asked.given, **asked.named)
        except Disconnected:
            return
        except Exception as error:
            value = _told(error, f"{asked.name} failed")
        self._answer(asked, value)

    def _ask_words(self, asked: Call, interest: Interest) -> None:
        name, client = asked.given
        assert isinstance(name, str) and isinstance(client, str)  # RemoteClient.ask_words

        def done(answer: AdapterWords | GraftError) -> None:
            self._answer(asked, answer)

        try:
            self._engine.ask_words(name, client, done, interest)
        except Exception as error:
            self._answer(asked, _told(error, "Asking for an adapter failed"))

    def _answer(self, asked: Call, value: object) -> None:
        if asked.call is None:
            return
        self._interests.pop(asked.call, None)
        try:
            frame = message_frame(Answered(asked.call, value))
        except Exception as error:  # what can't be sent: whoever waits for it is told so
            frame = message_frame(Answered(asked.call, _told(error, f"{asked.name} can't be answered")))
        self._outbox.send(frame)


class _StreamOutlet:
    """Codes one stream's events among those of all others of its front end."""

    __slots__ = ("_coding", "_number", "_streams", "ended")

    def __init__(self, number: int, coding: Coding, streams: dict[int, Stream]):
        self._number = number
        self._coding = coding
        self._streams = streams
        self.ended = False

    def put(self, item: tuple[Stream, Event | GraftError], /) -> None:
        event = item[1]
        self._coding.extend((self._number, code_event(event)))  # at once: two threads never part a pair
        if is_last(event):
            self.ended = True
            self._streams.pop(self._number, None)

    def fail(self, error: GraftError) -> None:
        self._coding.extend((self._number, code_event(error)))


def _told(error: Exception, what: str) -> GraftError:
    """As the front end is told of it."""
    if isinstance(error, GraftError):
        return error
    log.exception("%s", what)
    return BrokenError(f"{what}: {type(error).__name__}: {error}")
