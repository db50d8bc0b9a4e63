"""Connections to an ingress: how large a request may be, how long a client may be silent, and what is said of bytes that are no
request. As alike to an engine's own (http/wire/connections.py) as aiohttp lets them be.
"""

import asyncio
import logging
import socket
import sys

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from graft.server.http.response_shapes import error_body
from graft.server.scale.views import json_answer

log = logging.getLogger(__name__)
_no_log = logging.getLogger(f"{__name__}.requests")  # of requests: each engine has one
_no_log.disabled = True

BACKLOG = 1024
# A client's head is kept in memory until it is whole, so all limits together bound what a connection costs; a silent one, or one
# that sends its head a byte at a time, is hung up on. What an engine is to read is passed on as it was sent.
MAX_LINE_BYTES = 32 << 10
MAX_HEADERS = 256
SILENT_S = 120.0
UNREAD_S = 30  # that a client, or its kernel, takes nothing of what is sent


class _Connection(web.RequestHandler):
    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Of what never reaches the application. A stranger's bytes are no fault of ours, and no trace in the log."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        status, code = (
            (431, "request_header_fields_too_large") if isinstance(exc, LineTooLong) else (400, "bad_request")
        )
        said = next(iter((message or "").strip().splitlines()), "")
        log.info("%s sent no request: %s", request.remote, said)
        answer = json_answer({"error": error_body(status, f"This is no HTTP request: {said}", code)}, status)
        answer.headers["Server"] = ""
        answer.force_close()
        return answer


async def listen(runner: web.AppRunner, host: str, port: int) -> asyncio.Server:
    """Answer requests there, beside who listens there already and is about to go. Raises OSError."""
    await runner.setup()
    manager, loop = runner.server, asyncio.get_running_loop()
    assert manager is not None  # since it is set up

    def connection() -> web.RequestHandler:
        return _Connection(
            manager,
            loop=loop,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            keepalive_timeout=SILENT_S,
            auto_decompress=False,
            access_log=_no_log,
        )

    listening = await loop.create_server(connection, host, port, reuse_port=True, backlog=BACKLOG, start_serving=False)
    if sys.platform == "linux":
        for one in listening.sockets:  # from which connections have it
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_S * 1000)
    await listening.start_serving()
    return listening
