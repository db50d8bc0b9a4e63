"""The hub as an HTTP server, none of whose threads waits for a client.

A request is read whole before a thread takes it, and what it is answered waits in buffers, beyond a size on disk, until the
client has read it. So sixteen clients that ask for a large file and read nothing keep a connection each, and no thread.
"""

from typing import TYPE_CHECKING

import waitress
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import BaseWSGIServer, MultiSocketServer

from graft.hub.errors import GraftError
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.web.request import upload_bytes

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

CONNECTIONS = 200
RECEIVE_BYTES = 1 << 18
MAX_UNREAD_BYTES = 64 << 20  # of answers that a client has asked for and not read, beyond which it gets no further one
NEVER = 1 << 62  # bytes


class _Channel(HTTPChannel):
    """One connection. waitress lets a thread wait until its client has read; here the client is hung up on instead.

    One answer always fits: it is a file, handed over as such, or one piece. Those who get here send request upon request.
    """

    def write_soon(self, data: bytes) -> int:
        if self.total_outbufs_len > MAX_UNREAD_BYTES:
            raise ClientDisconnected
        return super().write_soon(data)


def http_server(
    app: "WSGIApplication", host: str, port: int, threads: int, max_weights_bytes: int = MAX_WEIGHTS_BYTES
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
            ident=None,
        )
    except OSError as error:
        raise GraftError(f"Can't listen on {host}:{port} ({error.strerror}): choose another --port.") from None
    for listening in sockets.values():
        if isinstance(listening, BaseWSGIServer):
            listening.channel_class = _Channel
    return server
