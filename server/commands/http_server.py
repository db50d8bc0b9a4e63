"""The server that speaks HTTP, as `graft serve` and its front ends run it: sockets, threads, limits."""

import logging
import resource
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from waitress import create_server
from waitress.channel import ClientDisconnected
from waitress.task import WSGITask
from waitress.wasyncore import loop

from graft.hub.connections import SPARE, close_door, unsettled
from graft.hub.errors import GraftError
from graft.server.http.clients import SPARE_THREADS
from graft.server.http.streaming.response import BODY
from graft.server.http.wire.connections import MAX_BODY_BYTES, MOST_UNREAD_BYTES, Connection, look_after_clients
from graft.server.operations.drain import Draining
from graft.server.operations.patience import Disconnected

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from waitress.server import BaseWSGIServer, MultiSocketServer

CONNECTIONS_PER_THREAD = 4  # kept-alive ones wait without a thread
OTHER_FILES = 32  # of a process, beside its connections: weights that are read, a registry, pipes
BACKLOG = 1024
_TURN_S = 1.0  # of the loop of sockets, at most


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address that `host` stands for, bound and not listening yet: nobody else gets the port meanwhile.

    Port 0: any free one, the same for all. Raises GraftError where it can't be had.
    """
    sockets: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, protocol)
            sockets.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port_of(sockets) if len(sockets) > 1 else port, *address[2:]))
    except OSError as error:
        for one in sockets:
            one.close()
        raise GraftError(f"Can't listen on {host}:{port} ({error.strerror}): choose another --port.") from None
    return sockets


def port_of(sockets: Sequence[socket.socket]) -> int:
    """The one that all are bound to."""
    port: int = sockets[0].getsockname()[1]
    return port


def room_for_connections(max_requests: int) -> int:
    """How many connections a process may have: as many as are wanted, or as it may open files for, whose limit is raised where it
    may be. Raises GraftError where those are too few: nobody is let in any more once they are used up."""
    wanted = (max_requests + SPARE_THREADS) * CONNECTIONS_PER_THREAD
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        allowed = wanted + OTHER_FILES if hard == resource.RLIM_INFINITY else min(hard, wanted + OTHER_FILES)
        soft = max(soft, allowed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wanted = min(wanted, soft - OTHER_FILES)
    if wanted < max_requests + SPARE:
        raise GraftError(
            f"--max-requests {max_requests} takes {max_requests + SPARE + OTHER_FILES} open files, and this process may have "
            f"{soft}: raise that limit (`ulimit -n`, LimitNOFILE=), or lower --max-requests."
        )
    return wanted


def http_server(
    app: "WSGIApplication",
    sockets: Sequence[socket.socket],
    max_requests: int,
    kept: dict[int, object] | None = None,
    ending: Callable[[], bool] = lambda: False,
) -> "BaseWSGIServer | MultiSocketServer":
    """A listening server; its `run` answers. `kept`: where it keeps its connections, by file descriptor. `ending`: whether each
    ends with the answer that it waits for."""
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # each request of a burst would be a warning
    connections = room_for_connections(max_requests)
    kept = {} if kept is None else kept
    server = create_server(
        app,
        map=kept,
        sockets=list(sockets),
        threads=max_requests + SPARE_THREADS,
        connection_limit=connections,
        backlog=BACKLOG,
        asyncore_use_poll=True,  # select() ends at 1024 connections
        channel_request_lookahead=1,  # reads on while a request is answered, which is how a hang-up is noticed
        clear_untrusted_proxy_headers=False,  # whom X-Forwarded-For is believed is decided in clients.py
        max_request_body_size=MAX_BODY_BYTES + 1,
        outbuf_high_watermark=MOST_UNREAD_BYTES,
        log_socket_errors=False,  # a client that vanishes is no fault of anybody's here
        ident=None,
    )
    look_after_clients(kept, connections, ending, _Channel)
    return server


def answer(server: "BaseWSGIServer | MultiSocketServer", kept: dict[int, object], ended: Callable[[], bool]) -> None:
    """What `server` is asked, until a KeyboardInterrupt or `ended`, which is looked at once a second: an exception that a signal's
    handler raises while waitress calls what another thread had it call is swallowed there."""
    with suppress(KeyboardInterrupt):
        while not ended():
            loop(_TURN_S, use_poll=True, map=kept, count=1)
    server.task_dispatcher.shutdown()


def draining(kept: dict[int, object]) -> Draining:
    """What a drain asks of the server that keeps its connections there."""
    return Draining(partial(unsettled, kept), partial(close_door, kept))


class _TaskBody:
    """The body of the answer that a task writes, for another thread to write to (http/streaming/pump.py)."""

    def __init__(self, task: WSGITask):
        self._task = task

    @property
    def unsent(self) -> int:
        count: int = self._task.channel.total_outbufs_len
        return count

    def write(self, data: bytes) -> None:
        try:
            self._task.write(data)
        except ClientDisconnected:
            raise Disconnected from None


class _Task(WSGITask):
    def get_environment(self) -> Mapping[str, object]:
        return {**super().get_environment(), BODY: _TaskBody(self)}


class _Channel(Connection):
    task_class = _Task

    def write_soon(self, data: bytes) -> int:
        """What the system takes at once goes through no buffer: of a stream that is nearly all."""
        unsent = data
        if isinstance(data, bytes):
            with self.outbuf_lock:  # who hangs up says so under it, and only then takes the socket away
                if self.connected and not self.total_outbufs_len:
                    unsent = data[self._send(data) :]
        if not unsent and data:
            return len(data)
        super().write_soon(unsent)
        return len(data)

    def _send(self, data: bytes) -> int:
        try:
            count: int = self.send(data, do_close=False)
        except OSError:
            self.will_close = True
            self.server.pull_trigger()
            raise ClientDisconnected from None
        if count:
            self.last_activity = time.time()
        return count
