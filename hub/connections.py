"""Connections of waitress that no client can hold: what each may leave unread, and how long it may take to send.

The hub and the inference server share it; each adds its own. Times are looked after by the loop of sockets, which passes every
connection once a second. Torch-free.
"""

import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer
from waitress.utilities import Error
from waitress.wasyncore import dispatcher

SPARE = 20  # connections that are kept free by hanging up on the most silent
_NEW_S = 2.0  # that a client has to ask, where its server is about to end
_VANISHED_S = 30  # without an answer of the other side's kernel
_PROBES = 3  # that the kernel sends in the second half of that to who is silent


class _AmbiguousLength(Error):
    code, reason = 400, "Bad Request"


class _TooSlow(Error):
    code, reason = 408, "Request Timeout"


@dataclass(frozen=True)
class Terms:
    """What a client gets before it is hung up on. `connections`: in all.

    A reader: within `read_s` it takes `read_bytes` of what waits for it, or all. A sender: a request is there within `send_s`, and a
    second more for each `send_bytes_per_s` of its body. `kernel_bytes`: of unread answers that the system keeps (0: megabytes, as
    it sees fit).
    """

    connections: int
    read_s: float = 30.0
    read_bytes: int = 16 << 10
    send_s: float = 30.0
    send_bytes_per_s: int = 16 << 10
    kernel_bytes: int = 0


class Parser(HTTPRequestParser):
    """Refuses a body of two lengths: a proxy before us may have believed the other one."""

    path = ""  # of a request whose head never came whole
    error: Error | None
    completed: bool

    def received(self, data: bytes) -> int:
        had_head = self.headers_finished
        consumed: int = super().received(data)
        has_head = self.headers_finished and not had_head and self.error is None
        if has_head and self.chunked and "CONTENT_LENGTH" in self.headers:
            self.error = _AmbiguousLength("Transfer-Encoding and Content-Length exclude each other.")
            self.completed = True
        return consumed


class Channel(HTTPChannel):
    """One connection."""

    parser_class = Parser
    terms: Terms
    request: Parser | None

    def __init__(
        self, server: BaseWSGIServer, sock: object, addr: object, adj: object, map: Mapping[int, object] | None = None
    ):
        _make_room(map or {}, self.terms.connections)
        self._since = time.monotonic()
        self._sent = 0  # bytes
        self._read_from: tuple[float, int] | None = None  # when its reading was last looked at, and what was sent then
        self._receiving: tuple[object, float] | None = None  # a request that comes in, and since when
        super().__init__(server, sock, addr, adj, map)

    def send(self, data: bytes, do_close: bool = True) -> int:
        count: int = super().send(data, do_close=do_close)
        self._sent += count
        return count

    def readable(self) -> bool:
        """Asked by the loop at every turn."""
        now = time.monotonic()
        if self.connected and self._reads_too_slowly(now):
            self.logger.info("hung up on %s, which does not read", self.addr)
            self.handle_close()
        elif self.connected and self._sends_too_slowly(now):
            self._refuse_late()
        return self.connected and bool(super().readable())

    def writable(self) -> bool:
        return self.connected and bool(super().writable())

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: no request, whole or in part, and no answer that is not sent. Who has just connected is
        about to ask."""
        is_new = self.last_activity == self.creation_time and time.monotonic() < self._since + _NEW_S
        return not (self.requests or self.request or self.total_outbufs_len or is_new)

    def _reads_too_slowly(self, now: float) -> bool:
        if not self.total_outbufs_len:
            self._read_from = None
            return False
        if self._read_from is None:
            self._read_from = now, self._sent
        since, sent = self._read_from
        if now - since < self.terms.read_s:
            return False
        self._read_from = now, self._sent
        return self._sent - sent < self.terms.read_bytes

    def _sends_too_slowly(self, now: float) -> bool:
        coming = self.request
        if coming is None:
            self._receiving = None
            return False
        if self._receiving is None or self._receiving[0] is not coming:
            self._receiving = coming, now
        body_s = coming.body_bytes_received / self.terms.send_bytes_per_s
        return now - self._receiving[1] > self.terms.send_s + body_s

    def _refuse_late(self) -> None:
        with self.requests_lock:
            late, self.request = self.request, None
            if late is None:
                return
            late.error, late.completed = _TooSlow("The request took too long to arrive."), True
            self.requests.append(late)
            if len(self.requests) == 1:
                self.server.add_task(self)


def _make_room(sockets: Mapping[int, object], most: int) -> None:
    """Where few connections are left, hang up on the one that has been silent longest: who opens many and sends a byte now
    and then, or reads none, would else keep everybody out. One whose answer is being made stays."""
    channels = [each for each in sockets.values() if isinstance(each, Channel)]
    silent = [each for each in channels if not each.requests]
    if silent and len(channels) >= most - SPARE:
        min(silent, key=lambda each: each.last_activity).handle_close()


def look_after(sockets: Mapping[int, object], channel: type[Channel]) -> None:
    """Have the servers among `sockets` make such connections, and their kernel find clients that vanished."""
    for listening in sockets.values():
        if isinstance(listening, BaseWSGIServer):
            listening.channel_class = channel
            listening.adj.socket_options = _socket_options(channel.terms)


def close_door(sockets: dict[int, object]) -> None:
    """Take no new connections, soon; those that the system has taken for us meanwhile are answered, too. On any thread."""
    for listening in list(sockets.values()):
        if isinstance(listening, BaseWSGIServer):
            # By the loop itself: a socket that another thread closes goes on listening as long as the loop waits for it.
            listening.trigger.pull_trigger(partial(_stop_listening, listening, sockets))


def _stop_listening(listening: BaseWSGIServer, sockets: dict[int, object]) -> None:
    while (accepted := listening.accept()) is not None:
        connection, address = accepted
        listening.channel_class(listening, connection, address, listening.adj, map=sockets)
    dispatcher.close(listening)


def unsettled(sockets: Mapping[int, object]) -> int:
    """Connections with a request or an answer under way. On any thread."""
    return sum(isinstance(each, Channel) and not each.settled for each in list(sockets.values()))


def _socket_options(terms: Terms) -> list[tuple[int, int, int]]:
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    if sys.platform == "linux":
        tcp = {
            socket.TCP_USER_TIMEOUT: _VANISHED_S * 1000,
            socket.TCP_KEEPIDLE: _VANISHED_S // 2,  # two hours, where nothing is said
            socket.TCP_KEEPINTVL: _VANISHED_S // 2 // _PROBES,
            socket.TCP_KEEPCNT: _PROBES,
        }
        options += [(socket.IPPROTO_TCP, option, value) for option, value in tcp.items()]
    if terms.kernel_bytes:
        options.append((socket.SOL_SOCKET, socket.SO_SNDBUF, terms.kernel_bytes))
    return options
