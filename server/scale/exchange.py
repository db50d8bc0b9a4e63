"""One request, answered by one of several engines: its bytes as they come, over HTTP from end to end. Ray-free.

Until the first byte of an answer another engine may as well give it; after that an engine that breaks ends the answer, and the
client is told by an event of its stream.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message

from aiohttp import web
from multidict import CIMultiDict

from graft.hub.errors import GraftError
from graft.server.http.access.introduction import INTRODUCTION, SECRET, Introduction
from graft.server.http.dialects import messages
from graft.server.http.response_shapes import error_body, server_sent
from graft.server.scale.fleet import Asked, Fleet
from graft.server.scale.relay import Head, LostError, Relay, open_relay

log = logging.getLogger(__name__)

WAIT_S = 10.0  # for a replica that may be asked, while there is none
# What an engine says before it has begun that another one may not: it ends, it can't reach the hub, its disk is full, its
# places are taken.
_ELSEWHERE = {502: None, 503: None, 507: None, 429: "overloaded"}  # status -> code; None: any
_DRAINING = 503  # or broken: it takes nothing more for now
_OF_A_CONNECTION = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
)
_FRAMING = "transfer-encoding"
_OF_A_CALLER = (
    SECRET,
    INTRODUCTION,
    "content-length",
    "authorization",
    "x-api-key",
    "x-forwarded-for",
    "expect",
)
_STREAM = "text/event-stream"


class NoReplicaError(GraftError):
    """No engine can be asked."""

    status = 503
    code = "no_replica"

    def __init__(self) -> None:
        super().__init__(
            "No replica takes requests at the moment: ask again in a moment. GET /ready says what each is missing."
        )


@dataclass(frozen=True)
class Call:
    """What engines are asked. `path`: with its query; `by`: who asks; `digest`: of the adapter that it needs, None for any engine."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    by: Introduction
    digest: str | None = None


@dataclass(frozen=True)
class Answered:
    """A whole answer. `status` 0: there was none."""

    status: int = 0
    reason: str = ""
    headers: Mapping[str, str] | None = None
    body: bytes = b""

    def response(self) -> web.Response:
        return web.Response(status=self.status, reason=self.reason, headers=self.headers, body=self.body)


class Elsewhere(Exception):
    """Another engine may answer."""

    def __init__(self, refusal: Answered):
        self.refusal = refusal


@dataclass(frozen=True)
class Engine:
    """Whom to ask, and what to show there."""

    id: str
    url: str
    secret: str = field(repr=False)


Pick = Callable[[Asked], Awaitable[Engine]]
"""For what is asked, the engine to ask."""


class Exchange:
    """Sends requests to engines and their answers to clients. Used by one event loop."""

    def __init__(self, fleet: Fleet, pick: Pick):
        self.retries = 0
        self._fleet = fleet
        self._pick = pick

    async def answer(self, request: web.Request, call: Call) -> tuple[web.StreamResponse, bool]:
        """Answer a client with the first engine that does; whether an engine had it all. Raises NoReplicaError."""
        asked, refusal = Asked(call.digest), Answered()
        until = asyncio.get_running_loop().time() + WAIT_S
        while True:
            if refusal.status and not self._fleet.choose(asked):
                return refusal.response(), True
            engine = await self._picked(asked, until)
            with self._fleet.under_way(engine.id):
                try:
                    return await self._attempt(request, call, engine)
                except LostError as error:
                    self._note(call, engine, str(error))
                    self._fleet.avoid(engine.id)
                except Elsewhere as other:
                    self._note(call, engine, str(other.refusal.status))
                    refusal, asked = other.refusal, replace(asked, tried=asked.tried | {engine.id})
                    if refusal.status == _DRAINING:
                        self._fleet.avoid(engine.id)

    async def whole(self, call: Call, engine: Engine) -> Answered | None:
        """One engine's whole answer; None where it gives none."""
        try:
            relay = await _ask(engine, call, "1.0")
            head = await relay.head
            return Answered(head.status, head.reason, passed_on(head.headers), await relay.whole())
        except LostError as error:
            log.warning("request %s: %s does not answer (%s)", call.request_id, engine.id, error)
            return None

    async def _picked(self, asked: Asked, until: float) -> Engine:
        """Raises NoReplicaError where none may be asked by then."""
        try:
            async with asyncio.timeout_at(until):
                return await self._pick(asked)
        except TimeoutError:
            raise NoReplicaError from None

    def _note(self, call: Call, engine: Engine, why: str) -> None:
        """Another one has to answer."""
        self.retries += 1
        log.warning("request %s: %s did not answer (%s)", call.request_id, engine.id, why)

    async def _attempt(self, request: web.Request, call: Call, engine: Engine) -> tuple[web.StreamResponse, bool]:
        """Raises LostError or Elsewhere before anything has been sent to the client, ConnectionError where that has gone."""
        version = f"{request.version.major}.{request.version.minor}"
        relay = await _ask(engine, call, version)
        try:
            head = await relay.head
            if head.status in _ELSEWHERE and not relay.is_chunked:
                return _good(head, await relay.whole()), True
            piece = await relay.take()
            response = _Relayed(status=head.status, reason=head.reason, headers=passed_on(head.headers))
            if relay.is_chunked:
                response.headers[_FRAMING] = "chunked"
            elif "Content-Length" not in response.headers:
                response.force_close()
            await response.prepare(request)
            whole = not piece or await self._pass_on(request, response, piece, relay)
        finally:
            relay.hang_up()
        if not whole:
            self._fleet.avoid(engine.id)
            log.error("request %s: %s broke off", call.request_id, engine.id)
            _break_off(request, response, call, relay)
        return response, whole

    async def _pass_on(self, request: web.Request, response: web.StreamResponse, piece: bytes, relay: Relay) -> bool:
        """Whether all came. Raises ConnectionResetError where the client has gone."""
        await response.write(piece)  # with the head
        if request.transport is None:
            raise ConnectionResetError("the client has gone")
        return await relay.pass_to(request.transport)


async def _ask(engine: Engine, call: Call, version: str) -> Relay:
    """Raises LostError where it can't be reached."""
    headers = {**call.headers, **call.by.headers(engine.secret)}
    return await open_relay(engine.url, call.method, call.path, headers, call.body, version)


class _Relayed(web.StreamResponse):
    """Framed as the engine has framed it."""

    _length_check = False


def _good(head: Head, body: bytes) -> web.Response:
    """Raises Elsewhere for what another engine may do all the same."""
    code, answered = _ELSEWHERE[head.status], Answered(head.status, head.reason, passed_on(head.headers), body)
    if code is None or f'"{code}"'.encode() in body:
        raise Elsewhere(answered)
    return answered.response()


def passed_on(headers: Message | Mapping[str, str]) -> CIMultiDict[str]:
    """A request's or an answer's headers, but those of its connection."""
    kept = CIMultiDict(headers.items())
    for name in (*_OF_A_CONNECTION, _FRAMING):
        kept.popall(name, None)
    return kept


def caller_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """A request's headers that are an engine's business: no key, no address."""
    kept = passed_on(headers)
    for name in _OF_A_CALLER:
        kept.popall(name, None)
    return kept


def _break_off(request: web.Request, response: web.StreamResponse, call: Call, relay: Relay) -> None:
    """Tell the client that this is not the answer's end: a stream by its last event, anything else by a broken connection."""
    if request.transport is None:
        return
    if response.content_type == _STREAM and relay.is_between_chunks:
        event = lost_event(call)
        request.transport.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(event), event))
    else:
        request.transport.abort()


_LOST = "The replica that was answering has gone: ask again."
_LOST_CODE = "replica_lost"


def lost_event(call: Call) -> bytes:
    """The last event of a stream whose engine has gone, in the dialect of its path."""
    if call.path.startswith(messages.PATH):
        return server_sent(messages.error_shape(500, _LOST, _LOST_CODE, call.request_id), "error")
    if call.path.startswith("/v1/responses"):
        return server_sent({"type": "error", "code": _LOST_CODE, "message": _LOST, "param": None}, "error")
    return server_sent({"error": error_body(500, _LOST, _LOST_CODE)})
