"""One request, answered by one of several engines: its bytes as they come, over HTTP from end to end. Ray-free.

Until the first byte of an answer another engine may as well give it; after that an engine that breaks ends the answer, and the
client is told by an event of its stream.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aiohttp import ClientError, ClientResponse, ClientSession, web
from multidict import CIMultiDict
from yarl import URL

from graft.hub.errors import GraftError
from graft.server.http.dialects import messages
from graft.server.http.response_shapes import error_body, server_sent
from graft.server.scale.fleet import Asked, Fleet

if TYPE_CHECKING:
    from aiohttp.client import _RequestContextManager

log = logging.getLogger(__name__)

WAIT_S = 10.0  # for a replica that may be asked, while there is none
# What an engine says before it has begun that another one may not: it ends, it can't reach the hub, its places are taken.
_ELSEWHERE = {502: None, 503: None, 429: "overloaded"}  # status -> code; None: any
_DRAINING = 503  # or broken: it takes nothing more for now
_OF_A_CONNECTION = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)
_OF_A_CALLER = ("host", "content-length", "authorization", "x-api-key", "x-forwarded-for", "expect")
_NOT_ADDED = ("Accept-Encoding", "Content-Type", "User-Agent")
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
    """What engines are asked. `path`: with its query; `digest`: of the adapter that it needs, None for any engine."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    digest: str | None = None


@dataclass(frozen=True)
class Answered:
    """A whole answer. `status` 0: there was none."""

    status: int = 0
    headers: Mapping[str, str] | None = None
    body: bytes = b""


class Elsewhere(Exception):
    """Another engine may answer."""

    def __init__(self, refusal: Answered):
        self.refusal = refusal


Pick = Callable[[Asked], Awaitable[tuple[str, str]]]
"""For what is asked, the id and address of the engine to ask."""


class Exchange:
    """Sends requests to engines and their answers to clients. Used by one event loop."""

    def __init__(self, fleet: Fleet, pick: Pick, session: ClientSession):
        self.retries = 0
        self._fleet = fleet
        self._pick = pick
        self._session = session

    async def answer(self, request: web.Request, call: Call) -> tuple[web.StreamResponse, bool]:
        """Answer a client with the first engine that does; whether an engine had it all. Raises NoReplicaError."""
        asked, refusal = Asked(call.digest), Answered()
        until = asyncio.get_running_loop().time() + WAIT_S
        while True:
            if refusal.status and not self._fleet.choose(asked):
                return web.Response(status=refusal.status, headers=refusal.headers, body=refusal.body), True
            try:
                async with asyncio.timeout_at(until):
                    id, url = await self._pick(asked)
            except TimeoutError:
                raise NoReplicaError from None
            with self._fleet.under_way(id):
                try:
                    return await self._attempt(request, call, id, url)
                except Elsewhere as other:
                    log.warning(
                        "request %s: %s did not answer (%s)", call.request_id, id, other.refusal.status or "gone"
                    )
                    self.retries += 1
                    refusal = other.refusal if other.refusal.status else refusal
                    asked = replace(asked, tried=asked.tried | {id})

    async def whole(self, call: Call, url: str) -> Answered | None:
        """One engine's whole answer; None where it gives none."""
        try:
            async with self._ask(call, url) as answer:
                return Answered(answer.status, passed_on(answer.headers), await answer.read())
        except (ClientError, ConnectionError, TimeoutError) as error:
            log.warning("request %s: %s does not answer (%s)", call.request_id, url, error)
            return None

    def _ask(self, call: Call, url: str) -> "_RequestContextManager":
        """One engine; the answer as it comes."""
        return self._session.request(
            call.method,
            URL(url + call.path, encoded=True),
            headers=call.headers,
            data=call.body,
            allow_redirects=False,
            skip_auto_headers=_NOT_ADDED,
        )

    async def _attempt(self, request: web.Request, call: Call, id: str, url: str) -> tuple[web.StreamResponse, bool]:
        """Raises Elsewhere before anything has been sent to the client."""
        response: web.StreamResponse | None = None
        try:
            async with self._ask(call, url) as answer:
                if answer.status in _ELSEWHERE:
                    return await self._refused(answer, id), True
                piece = await answer.content.readany()
                response = web.StreamResponse(status=answer.status, headers=passed_on(answer.headers))
                await response.prepare(request)
                while piece:
                    await response.write(piece)
                    piece = await answer.content.readany()
            await response.write_eof()
            return response, True
        except (ClientError, ConnectionError, TimeoutError) as error:
            if request.transport is None or request.transport.is_closing():
                raise  # the client has gone
            self._fleet.avoid(id)
            if response is None:
                raise Elsewhere(Answered()) from None
            log.error("request %s: %s broke off (%s)", call.request_id, id, error)
            await _break_off(request, response, call)
            return response, False

    async def _refused(self, answer: ClientResponse, id: str) -> web.Response:
        """Raises Elsewhere for what another engine may do all the same."""
        body = await answer.read()
        code = _ELSEWHERE[answer.status]
        if answer.status == _DRAINING:
            self._fleet.avoid(id)
        if code is None or f'"{code}"'.encode() in body:
            raise Elsewhere(Answered(answer.status, passed_on(answer.headers), body))
        return web.Response(status=answer.status, headers=passed_on(answer.headers), body=body)


def passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """An answer's headers, but those of its connection."""
    kept = CIMultiDict(headers)
    for name in _OF_A_CONNECTION:
        kept.popall(name, None)
    return kept


def caller_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """A request's headers that are an engine's business: no key, no address."""
    kept = passed_on(headers)
    for name in _OF_A_CALLER:
        kept.popall(name, None)
    return kept


async def _break_off(request: web.Request, response: web.StreamResponse, call: Call) -> None:
    """Tell the client that this is not the answer's end: a stream by its last event, anything else by a broken connection."""
    if response.content_type == _STREAM:
        await response.write(lost_event(call))
        await response.write_eof()
    elif request.transport is not None:
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
