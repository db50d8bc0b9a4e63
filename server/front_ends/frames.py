"""What a front end and the engine's process tell each other, and how it is written on the socket between them. Torch-free.

A frame is its length and kind, and its data: a message, or the events of many streams. Both ends are processes of one server
that were started from one installation and trust each other, so messages are pickled. Events, of which every token is one, are
marshalled as one flat list, their streams' numbers and their own in turn: an eightieth of what pickling them as they are takes
(benchmarks/tables/front_ends.py).
"""

import marshal
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from io import BufferedReader
from struct import Struct
from typing import TYPE_CHECKING

from graft.hub.errors import GraftError
from graft.server.engine.client import EngineClient, ServedBase
from graft.server.engine.request import Event, Finished, Request
from graft.server.sampling.params import Token

if TYPE_CHECKING:
    from flask import Flask

    from graft.server.http.clients import Places
    from graft.server.operations.drain import Drain

_HEAD = Struct("<IB")
MAX_FRAME_BYTES = 1 << 30


class Kind(IntEnum):
    MESSAGE = 0
    EVENTS = 1


# From the engine's process


@dataclass(frozen=True)
class Start:
    """The first message: what is served, and how to make the application that serves it. `max_requests`: answered at once."""

    base: ServedBase
    make_app: "Callable[[EngineClient, Places, Drain], Flask]"
    max_requests: int
    log_as_json: bool = False


@dataclass(frozen=True)
class Answered:
    """What a `Call` has brought: its value, or (a GraftError) why there is none."""

    call: int
    value: object


@dataclass(frozen=True)
class BeginDrain:
    """Take no new requests, and let those under way end within so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Close:
    """The server ends: whoever is under way has been told, or is about to be."""


# From a front end


@dataclass(frozen=True)
class Ready:
    """It answers."""


@dataclass(frozen=True)
class Drained:
    """Nothing is under way any more, or the time for it is over."""


@dataclass(frozen=True)
class Submit:
    """Queue a request, as the stream of that number."""

    stream: int
    request: Request


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for a stream any more."""

    stream: int


@dataclass(frozen=True)
class Call:
    """Something to be asked or done (session.py: CALLS), with the number by which the answer is known. None: none is wanted."""

    call: int | None
    name: str
    given: tuple[object, ...] = ()
    named: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class GiveUp:
    """Nobody waits for a call's answer any more. There may be one."""

    call: int


Message = Start | Answered | BeginDrain | Close | Ready | Drained | Submit | Cancel | Call | GiveUp
# An event on its way: a token's number; a token with its log-probability; anything else, pickled.
Coded = int | tuple[int, float | None, tuple[tuple[int, float], ...]] | bytes
Coding = list[int | Coded]  # a stream's number and its event, in turn


def message_frame(message: Message) -> bytes:
    return _frame(Kind.MESSAGE, pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def events_frame(coding: Coding) -> bytes:
    return _frame(Kind.EVENTS, marshal.dumps(coding))


def _frame(kind: Kind, data: bytes) -> bytes:
    return _HEAD.pack(len(data), kind) + data


def code_event(event: Event | GraftError) -> Coded:
    if isinstance(event, Token):
        return event.id if event.logprob is None and not event.top else (event.id, event.logprob, event.top)
    return pickle.dumps(event, pickle.HIGHEST_PROTOCOL)


def decode_event(coded: Coded) -> Event | GraftError:
    if isinstance(coded, int):
        return Token(coded)
    if isinstance(coded, tuple):
        return Token(*coded)
    event: Event | GraftError = pickle.loads(coded)
    return event


def is_last(event: Event | GraftError) -> bool:
    """Whether a stream has ended with it."""
    return isinstance(event, Finished | GraftError)


def read_frames(file: BufferedReader) -> Iterator[Message | Sequence[int | Coded]]:
    """Messages, and events of streams as a flat list, until the other end has gone."""
    while len(head := _read(file, _HEAD.size)) == _HEAD.size:
        size, kind = _HEAD.unpack(head)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes")
        data = _read(file, size)
        if len(data) < size:
            return
        yield marshal.loads(data) if kind == Kind.EVENTS else pickle.loads(data)


def _read(file: BufferedReader, size: int) -> bytes:
    try:
        return file.read(size)
    except OSError:  # it went while it was sending
        return b""
