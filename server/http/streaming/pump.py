"""The thread that writes all streams of a process: what a step brings, it turns into text and
events, stream by stream, then sends.

A thread for each stream would be woken for each token, and all of them would ask for Python's interpreter at once: five times what
the work itself takes (benchmarks/tables/front_ends.py). The threads that began the requests wait meanwhile; each accounts for its
own and writes the end of it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from graft.hub.errors import GraftError
from graft.server.engine.client import EngineClient
from graft.server.http.answer import Answer, Piece
from graft.server.operations.patience import Disconnected

log = logging.getLogger("graft.server")
GONE_S = 0.5  # how often clients are looked after to which nothing is written
MOST_UNSENT_BYTES = 64 << 10  # that wait for a slow reader, before its tokens wait in their queue


class StreamWriter(Protocol):
    """Writes a stream's events in a dialect."""

    def opening(self) -> Iterator[bytes]: ...

    def piece(self, piece: Piece) -> Iterator[bytes]: ...

    def ending(self) -> Iterator[bytes]: ...

    def error(self, error: GraftError) -> bytes:
        """The last event of a stream that fails."""
        ...

    def failure(self) -> bytes:
        """The last event of a stream that broke on our own account."""
        ...


class Body(Protocol):
    """A response's body, as the server offers it (commands/http_server.py)."""

    @property
    def unsent(self) -> int:
        """Bytes that have been written, and not taken by the system."""
        ...

    def write(self, data: bytes) -> None:
        """Does not wait where little is unsent. Raises Disconnected."""
        ...


class Pump:
    """Of one application. Safe for many threads. Its thread runs while there are streams."""

    def __init__(self, engine: EngineClient):
        self._engine = engine
        self._marked: deque[PumpedStream] = deque()  # those that something has come for
        self._woken = threading.Event()
        self._lock = threading.Lock()
        self._streams: frozenset[PumpedStream] = frozenset()
        self._running = False

    def add(self, stream: "PumpedStream") -> None:
        """It begins. Raises RuntimeError, and nothing has changed, where the system allows no more threads."""
        with self._lock:
            if not self._running:
                threading.Thread(target=self._run, name="graft-pump", daemon=True).start()
                self._running = True
            self._streams = self._streams | {stream}  # the pump goes through them meanwhile

    def remove(self, stream: "PumpedStream") -> None:
        """It has ended."""
        with self._lock:
            self._streams = self._streams - {stream}
        self._woken.set()

    def mark(self, stream: "PumpedStream") -> None:
        """Something has come for a stream: it is told when all that comes together is there, at the next `wake`."""
        if not stream.marked:
            stream.marked = True
            self._marked.append(stream)

    def wake(self) -> None:
        if self._marked:
            self._woken.set()

    def _run(self) -> None:
        stop = self._engine.after_steps(self.wake)
        try:
            looked = time.monotonic()
            while self._goes_on():
                self._woken.wait(GONE_S)
                self._woken.clear()
                while due := [self._marked.popleft() for _ in range(len(self._marked))]:
                    # All first, then all: a reader on this machine that is woken by each takes the core, and what it had in its caches.
                    for stream in due:
                        stream.make()
                    for stream in due:
                        stream.send()
                if time.monotonic() - looked >= GONE_S:
                    looked = time.monotonic()
                    for stream in self._streams:
                        stream.look_after()
        except BaseException:  # nobody else would end those that wait
            log.exception("writing streams failed")
            with self._lock:
                self._running = False
                for stream in self._streams:
                    stream.fail()
        finally:
            stop()

    def _goes_on(self) -> bool:
        with self._lock:
            self._running = bool(self._streams)
            return self._running


@dataclass(frozen=True)
class Streamed:
    """An answer that is written as it comes. `first`: what has been read of it. `settle`: called before its last bytes are sent:
    what a client has been given whole is accounted for, whenever this process is killed. May be called again."""

    answer: Answer
    writer: StreamWriter
    first: Sequence[Piece]
    settle: Callable[[], None]
    request_id: str


class PumpedStream:
    """One answer's stream. `run` on the thread that began it, which waits there until all is written but the end, and writes
    that; the rest is the pump's."""

    def __init__(self, pump: Pump, streamed: Streamed, body: Body):
        self.marked = False
        self._late = False  # something has come, and the reader is slow
        self._pump, self._streamed, self._body = pump, streamed, body
        self._answer, self._writer = streamed.answer, streamed.writer
        self._first: Sequence[Piece] | None = streamed.first  # None: they are written
        self._made = b""  # what is to be written next
        self._end = b""  # what is still to be written once it is over
        self._over = threading.Event()

    def run(self) -> None:
        self._pump.add(self)
        try:
            self._answer.tell(self._mark)
            self._mark()
            self._pump.wake()
            self._over.wait()
        finally:
            self._pump.remove(self)
        try:
            self._streamed.settle()  # may wait for a disk or a network, and so is nothing for the pump
        except GraftError as error:  # who could not be accounted for is not told that all is there
            self._end = self._writer.error(error)
        if self._end:
            with suppress(Disconnected):
                self._body.write(self._end)

    def end(self, last: bytes = b"") -> None:
        """Let its thread go, to write the `last` bytes. Of no effect once it is over."""
        if not self._over.is_set():
            self._end = last
            self._over.set()

    def fail(self) -> None:
        """Let its thread go, to say that it broke on our own account; a client would else take it for whole."""
        try:
            last = self._writer.failure()
        except Exception:
            log.exception("request %s: its failure could not be told", self._streamed.request_id)
            last = b""
        self.end(last)

    def look_after(self) -> None:
        """End it where its client has gone; see whether a slow reader has caught up. On the pump's thread."""
        try:
            self._answer.patience.look()
        except Disconnected:
            self.end()
        except GraftError as error:  # the time for it is over
            self._answer.error = error
            self.end(self._writer.error(error))
        except Exception:
            self._break("request %s: whether its client is there could not be seen")
        else:
            if self._late:
                self.make()
                self.send()

    def make(self) -> None:
        """Make events of what has come. On the pump's thread."""
        self.marked = False
        self._late = self._body.unsent > MOST_UNSENT_BYTES
        if self._over.is_set() or self._late:
            return
        try:
            over, events = self._events()
        except Exception:  # not even its end could be made
            self._break("request %s could not be answered")
            return
        if over:
            self.end(events)
        else:
            self._made = events

    def send(self) -> None:
        """Write what was made. On the pump's thread."""
        data, self._made = self._made, b""
        if not data or self._over.is_set():
            return
        try:
            self._body.write(data)
        except Disconnected:
            self.end()
        except Exception:
            self._break("request %s could not be written")

    def _break(self, what: str) -> None:
        """While an error is handled that should not have been: it costs this stream alone."""
        log.exception(what, self._streamed.request_id)
        self.fail()

    def _mark(self) -> None:
        self._pump.mark(self)

    def _events(self) -> tuple[bool, bytes]:
        """Whether the stream ends, and what is to be written. The headers are out: a bug can only end it with an error event."""
        writer, events = self._writer, list[bytes]()
        try:
            if self._first is not None:
                first, self._first = self._first, None
                events.extend(writer.opening())
                for piece in first:
                    events.extend(writer.piece(piece))
            for piece in self._answer.news():
                events.extend(writer.piece(piece))
            if not self._answer.complete:
                return False, b"".join(events)
            events.extend(writer.ending())
        except GraftError as error:
            events.append(writer.error(error))
        except Exception:
            log.exception("request %s failed", self._streamed.request_id)
            events.append(writer.failure())
        return True, b"".join(events)


def written_here(streamed: Streamed) -> Iterator[bytes]:
    """The same on the thread that asks for it, where the server offers no body to write to."""
    writer = streamed.writer
    try:
        yield from writer.opening()
        for pieces in (streamed.first, streamed.answer.pieces()):
            for piece in pieces:
                yield from writer.piece(piece)
        streamed.settle()
        yield from writer.ending()
    except Disconnected:
        return
    except GraftError as error:
        yield writer.error(error)
    except Exception:
        log.exception("request %s failed", streamed.request_id)
        yield writer.failure()
