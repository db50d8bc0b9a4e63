"""The hub as an HTTP server, none of whose threads waits for a client.

A request is read whole before a thread takes it, and what it is answered waits in buffers, beyond a size on disk, until the
client has read it. So sixteen clients that ask for a large file and read nothing keep a connection each, and no thread.
Nor do connections run out: where nearly all are taken, a newcomer takes the place of the one that has been silent longest.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet

import waitress
from waitress.channel import ClientDisconnected
from waitress.server import BaseWSGIServer, MultiSocketServer
from waitress.utilities import Error

from graft.hub.connections import Channel, Parser, Terms, look_after
from graft.hub.errors import GraftError
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.web.large_bodies import Sender
from graft.hub.web.request import upload_bytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CONNECTIONS = 200
READ_S = 120.0  # a disk that fills, a client that pauses: longer than where answers are text
RECEIVE_BYTES = 1 << 18
# Of answers that a client has asked for and not read, beyond which it gets no further one.
MAX_UNREAD_BYTES = 64 << 20
MAX_UNREAD_PIECES = 5  # two answers with a file each, which stays open until it is read
NEVER = 1 << 62  # bytes
SMALL_BODY_BYTES = 4 << 20  # of anybody's request
_ANYBODY = Sender("", None)

Admits = Callable[[str, str, str], Sender | None]
"""Of a request's path, query and Authorization header: who sends it, if its body may be large."""


class _NotYou(Error):
    code, reason = 401, "Unauthorized"


class _TooMuchAtOnce(Error):
    code, reason = 413, "Content Too Large"


class _Parser(Parser):
    """Reads a large body only from who may send one: it goes to disk before a view could ask who that is. All that one sender
    has on the way is held to their quota of bytes: a view, which asks for the room that is left, sees a body only whole."""

    admits: Admits
    large: WeakSet["_Parser"]  # those of the same server whose bodies are
    sender: Sender | None = None

    def received(self, data: bytes) -> int:
        had_head = self.headers_finished
        consumed: int = super().received(data)
        if self.headers_finished and self.error is None:
            self.error = self._excess() if had_head else self._objection()
            if self.error is not None:
                self.completed = True
                self.large.discard(self)  # read no further, it takes nobody's room
        return consumed

    @property
    def body_bytes(self) -> int:
        """As many as are said to come; of chunks, as have come."""
        return max(self.content_length, self.body_bytes_received)

    def _objection(self) -> Error | None:
        if not self.chunked and self.content_length <= SMALL_BODY_BYTES:
            return None
        self.sender = type(self).admits(self.path, self.query, self.headers.get("AUTHORIZATION", ""))
        if self.sender is None:
            return _NotYou(
                f"More than {SMALL_BODY_BYTES:,} bytes, or chunks, are taken from who may write: send your token."
            )
        self.large.add(self)
        return self._excess()

    def _excess(self) -> Error | None:
        if self.sender is None or self.sender.most is None:
            return None
        on_the_way = sum(each.body_bytes for each in self.large if each.sender and each.sender.name == self.sender.name)
        if on_the_way <= self.sender.most:
            return None
        return _TooMuchAtOnce(
            f"{self.sender.name} may have {self.sender.most:,} bytes, and sends {on_the_way:,} at once: send fewer, one after another."
        )


class _Channel(Channel):
    """One connection. waitress lets a thread wait until its client has read; here the client is hung up on instead.

    One answer always fits: it is a file, handed over as such, or one piece. Those who get here send request upon request.
    """

    terms = Terms(CONNECTIONS, read_s=READ_S)

    def write_soon(self, data: bytes) -> int:
        if self.total_outbufs_len > MAX_UNREAD_BYTES or len(self.outbufs) > MAX_UNREAD_PIECES:
            raise ClientDisconnected
        return super().write_soon(data)


def http_server(
    app: "WSGIApplication",
    host: str,
    port: int,
    threads: int,
    max_weights_bytes: int = MAX_WEIGHTS_BYTES,
    admits: Admits = lambda path, query, authorization: _ANYBODY,
) -> BaseWSGIServer | MultiSocketServer:
    """A listening server; its `run` answers. Raises GraftError where the port can't be had."""
    sockets: dict[int, object] = {}
    try:
        server = waitress.create_server(
            app,
            map=sockets,
            host=host,
            port=port,
            threads=threads,
            connection_limit=CONNECTIONS,
            recv_bytes=RECEIVE_BYTES,
            max_request_body_size=upload_bytes(max_weights_bytes),
            outbuf_high_watermark=NEVER,
            asyncore_use_poll=True,  # select() fails at the 1,024th file that a process has open
            ident=None,
        )
    except OSError as error:
        raise GraftError(f"Can't listen on {host}:{port} ({error.strerror}): choose another --port.") from None
    parser = type("Parser", (_Parser,), {"admits": staticmethod(admits), "large": WeakSet()})
    look_after(sockets, type("Connection", (_Channel,), {"parser_class": parser}))
    return server
