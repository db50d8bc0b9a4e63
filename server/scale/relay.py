"""One request to an engine, on a connection of its own, and its answer's bytes as they come. Ray-free; knows no web framework.

A stream's token is a piece of some hundred bytes, and there are thousands a second: each goes from one socket to the other in one
call, as it is, chunked as the engine has chunked it. Whether an answer came whole is told by its framing, for a process that is killed ends its
connections like one that is done.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from urllib.parse import urlsplit

from multidict import CIMultiDict

CONNECT_S = 5.0
MOST_WAITING_BYTES = (
    256 << 10
)  # of an answer that its client does not take: then the engine waits, which hangs up on sleepers
MAX_HEAD_BYTES = 64 << 10
_LOOK_S = 0.05  # how often it is looked whether such a client has taken some
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class LostError(Exception):
    """The engine's answer does not come, or not to its end."""


@dataclass(frozen=True)
class Head:
    """Of an answer."""

    status: int
    reason: str
    headers: Message


class Relay(asyncio.Protocol):
    """Of one answer. Its client's transport is whatever `pass_to` is given."""

    def __init__(self, *, has_body: bool = True):
        """`has_body`: the answer has one, which one to HEAD has not."""
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[Head] = loop.create_future()
        self.begun: asyncio.Future[None] = loop.create_future()  # there is a first byte of the body, or none will come
        self.ended: asyncio.Future[bool] = loop.create_future()  # whether all of it has come
        self.is_chunked = False
        self._loop = loop
        self._has_body = has_body
        self._waiting = bytearray()
        self._client: asyncio.WriteTransport | None = None
        self._tail = b"\r\n"  # the last bytes of a chunked body
        self._left: int | None = None  # bytes of a body of known length that are to come

    # What is asked of it

    def begin(self, transport: asyncio.Transport, request: bytes) -> None:
        self._transport = transport
        transport.write(request)

    async def take(self) -> bytes:
        """What has come of the body and was not taken; b"" at its end alone. Raises LostError where that is not its end."""
        await self.begun
        piece = bytes(self._waiting)
        self._waiting.clear()
        if not piece and not await self.ended:
            raise LostError("the connection broke off")
        return piece

    async def whole(self) -> bytes:
        """All of the body as the engine has framed it. Raises LostError."""
        if not await self.ended:
            raise LostError("the connection broke off")
        return bytes(self._waiting)

    async def pass_to(self, client: asyncio.WriteTransport) -> bool:
        """Write the rest of the body to a client, as it comes; whether all came."""
        client.write(bytes(self._waiting))
        self._waiting.clear()
        self._client = client
        return await self.ended

    @property
    def is_between_chunks(self) -> bool:
        """Whether another chunk may follow what has come."""
        return self.is_chunked and self._tail.endswith(b"\r\n")

    def hang_up(self) -> None:
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """`begin` is told of the transport by its right type."""

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            self._client.write(data)
            if self._client.get_write_buffer_size() > MOST_WAITING_BYTES:
                self._transport.pause_reading()
                self._loop.call_later(_LOOK_S, self._go_on)
        else:
            self._waiting += data
            data = data if self.head.done() else self._read_head()
            if len(self._waiting) > MOST_WAITING_BYTES and self.begun.done():
                self._transport.pause_reading()
                self._loop.call_later(_LOOK_S, self._go_on)
        if data:
            self._count(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.head.done():
            self.head.set_exception(LostError(str(error or "the connection was closed")))
        if not self.ended.done():
            self.ended.set_result(error is None and self.head.exception() is None and self._is_whole())
        if not self.begun.done():
            self.begun.set_result(None)

    def _read_head(self) -> bytes:
        """What there is of the body, once the head is whole."""
        end = self._waiting.find(_HEAD_END)
        if end < 0:
            if len(self._waiting) > MAX_HEAD_BYTES:
                self._transport.abort()
            return b""
        line, _, fields = bytes(self._waiting[:end]).partition(b"\r\n")
        del self._waiting[: end + len(_HEAD_END)]
        headers = BytesHeaderParser().parsebytes(fields)
        self.is_chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
        length = headers.get("Content-Length")
        self._left = int(length) if length is not None and self._has_body else None
        _, status, reason = line.decode("latin-1").split(" ", 2)
        self.head.set_result(Head(int(status), reason, headers))
        if self._left == 0 or not self._has_body:
            self._end()
        return bytes(self._waiting)

    def _count(self, data: bytes) -> None:
        """What has come of the body."""
        if not self.begun.done():
            self.begun.set_result(None)
        if self.is_chunked:
            self._tail = (data if len(data) >= len(_LAST_CHUNK) else self._tail + data)[-len(_LAST_CHUNK) :]
        elif self._left is not None:
            self._left -= len(data)
        if self._is_whole() and (self.is_chunked or self._left is not None):
            self._end()

    def _end(self) -> None:
        """All of it is there."""
        if not self.ended.done():
            self.ended.set_result(True)
            self._transport.close()

    def _is_whole(self) -> bool:
        """A body without either framing ends with its connection."""
        return self._tail == _LAST_CHUNK if self.is_chunked else not self._left

    def _go_on(self) -> None:
        if self._transport.is_closing():
            return
        waiting = len(self._waiting) if self._client is None else self._client.get_write_buffer_size()
        if waiting > MOST_WAITING_BYTES // 2 and not (self._client is not None and self._client.is_closing()):
            self._loop.call_later(_LOOK_S, self._go_on)
        else:
            self._transport.resume_reading()


async def open_relay(url: str, method: str, path: str, headers: Mapping[str, str], body: bytes, version: str) -> Relay:
    """Ask an engine. `version`: of HTTP, as who asks speaks it; before 1.1 an answer is not chunked. Raises LostError where
    the engine can't be reached."""
    at = urlsplit(url)
    fields = CIMultiDict({"Host": at.netloc, "Connection": "close", "Content-Length": str(len(body))})
    fields.update(headers)
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    request = "\r\n".join(lines).encode("utf-8", "surrogateescape") + body
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_S):
            transport, relay = await loop.create_connection(
                lambda: Relay(has_body=method != "HEAD"), at.hostname or "", at.port or 80
            )
    except (OSError, TimeoutError) as error:
        raise LostError(str(error) or f"no connection within {CONNECT_S:.0f} s") from None
    relay.begin(transport, request)
    return relay
