"""The server that speaks HTTP, as `graft serve` and its front ends run it: sockets, threads, limits."""

import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from graft.hub.errors import GraftError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from waitress.server import BaseWSGIServer, MultiSocketServer

LOG_FORMAT = "%(asctime)s %(name)s %(message)s"
SPARE_THREADS = 16  # beyond those that answer completions: lists, health, metrics, refusals
CONNECTIONS_PER_THREAD = 4  # kept-alive ones wait without a thread
BACKLOG = 1024


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


def http_server(
    app: "WSGIApplication", sockets: Sequence[socket.socket], max_requests: int
) -> "BaseWSGIServer | MultiSocketServer":
    """A listening server; its `run` answers."""
    import waitress

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # each request of a burst would be a warning
    threads = max_requests + SPARE_THREADS
    return waitress.create_server(
        app,
        sockets=list(sockets),
        threads=threads,
        connection_limit=threads * CONNECTIONS_PER_THREAD,
        backlog=BACKLOG,
        asyncore_use_poll=True,  # select() ends at 1024 connections
        channel_request_lookahead=1,  # reads on while a request is answered, which is how a hang-up is noticed
        clear_untrusted_proxy_headers=False,  # whom X-Forwarded-For is believed is decided in clients.py
        ident=None,
    )
