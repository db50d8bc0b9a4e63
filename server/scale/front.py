"""An ingress's HTTP: who asks, for which model, and which engine is to answer. Ray-free.

Everything that an engine can say it says itself: its answers and errors are passed on as they are. The ingress's own are those of
keys, of names that stand for nothing, and of engines that can't be reached.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from graft.hub.connections import Terms
from graft.hub.errors import GraftError, NotFoundError
from graft.hub.wsgi import request_id
from graft.server.errors import InvalidKeyError, NotAllowedError
from graft.server.http import cors
from graft.server.http.access import header_names
from graft.server.http.access.introduction import Introduction
from graft.server.http.clients import Network, client_of
from graft.server.http.dialects import messages
from graft.server.http.response_shapes import broken_message, error_body
from graft.server.http.wire.connections import MAX_BODY_BYTES
from graft.server.keys.access import Access
from graft.server.keys.far_accounts import ANSWER, TOLD
from graft.server.keys.holders import EVERYTHING, Holder
from graft.server.operations.drain import DrainingError
from graft.server.scale import views
from graft.server.scale.callers import Named, Names, Opening, Visits, holder_of
from graft.server.scale.exchange import Answered, Call, Engine, Exchange, NoReplicaError, caller_headers
from graft.server.scale.fleet import Fleet

log = logging.getLogger(__name__)

ACCOUNTS = "/internal/accounts"
RETRY_AFTER_S = 1
_OPEN = ("/health", "/ready", "/openapi.json")  # no key is asked for
_LOOKING = ("GET", "HEAD")
_ID = web.RequestKey("id", str)
_ONE_MODEL = "/v1/models/"
_TOLD_LAST = {
    200: 1,
    404: 2,
}  # of several answers: what went wrong, else what was done, else that there was nothing to do


class NotHereError(GraftError):
    """One engine has it, several don't."""

    status = 501
    code = "not_offered"


class IngressError(GraftError):
    """A fault of the ingress."""

    status = 500
    code = "internal_error"


class SlowBodyError(GraftError):
    """A client that does not send what it has begun."""

    status = 408
    code = "request_timeout"


class BodyTooLargeError(GraftError):
    """As an engine says it."""

    status = 413
    code = "request_entity_too_large"


@dataclass(frozen=True)
class Asking:
    """A request that is to be answered. `path`: without its query, without a slash at its end."""

    request: web.Request
    path: str
    id: str
    holder: Holder
    names: Names


Handler = Callable[[Asking], Awaitable[web.StreamResponse]]


class Front:
    """Of one ingress. `url`: where engines reach it. Used by one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        exchange: Exchange,
        visits: Visits,
        opening: Opening,
        url: str,
        trusted_proxies: tuple[Network, ...] = (),
        cors_origins: tuple[str, ...] = (),
    ):
        self.under_way = 0
        self.draining = False
        self._fleet = fleet
        self._exchange = exchange
        self._visits = visits
        self._opening = opening
        self._url = url
        self._trusted_proxies = trusted_proxies
        self._cors_origins = cors_origins
        self._known: tuple[str, Access, Names] | None = None  # by the base's fingerprint
        self._handlers: Mapping[tuple[str, str], Handler] = {
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/adapters"): self._adapters,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/adapters/unload"): self._everywhere,
            ("POST", "/v1/adapters/pin"): self._pin,
            ("POST", "/v1/load_lora_adapter"): _refuse_names,
            ("POST", "/v1/unload_lora_adapter"): _refuse_names,
        }

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES + 1)
        app.router.add_post(ACCOUNTS + "/{name}/{what}", self._account)
        app.router.add_route("*", "/{path:.*}", self._answer)
        app.on_response_prepare.append(self._stamp)
        return app

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        id = request[_ID] = request_id(request.headers.get(header_names.REQUEST_ID, ""))
        self.under_way += 1
        try:
            return await self._route(request, request.path.rstrip("/") or "/", id)
        except web.HTTPRequestEntityTooLarge:
            error: GraftError = BodyTooLargeError(f"The body is larger than {MAX_BODY_BYTES} bytes.")
        except GraftError as said:
            error = said
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            log.exception("request %s failed", id)
            error = IngressError(broken_message(id))
        finally:
            self.under_way -= 1
        return failure(request.path, error, id)

    async def _route(self, request: web.Request, path: str, id: str) -> web.StreamResponse:
        looks = request.method in _LOOKING
        if path == "/health" and looks:
            return views.json_answer({"status": "ok"})
        if self.draining:
            raise DrainingError
        if path == "/ready" and looks:
            keyring = self._known[1].keyring if self._known else None
            return views.readiness(self._fleet, keys_outdated=keyring is not None and keyring.problem is not None)
        access, names = self._opened()
        needs_key = path not in _OPEN and request.method != "OPTIONS"  # a browser asks for what it may do without one
        if path == "/metrics" and looks and access.open_metrics:
            return views.metrics(self._fleet, self._exchange.retries)
        holder = await _let_in(access, request.headers, needs_key=needs_key)
        asking = Asking(request, path, id, holder, names)
        return await self._handlers.get((request.method, path), self._by_one)(asking)

    async def _stamp(self, request: web.Request, response: web.StreamResponse) -> None:
        """The ingress's own answers have the headers that engines give theirs; no strangers learn which server this is."""
        response.headers.popall("Server", None)
        if header_names.REQUEST_ID not in response.headers:
            response.headers[header_names.REQUEST_ID] = request.get(_ID, "")
            response.headers.update(cors.headers_for(request.headers.get("Origin"), self._cors_origins))

    def _opened(self) -> tuple[Access, Names]:
        """Keys and names, once the base is known. Raises NoReplicaError before, GraftError where they can't be opened."""
        serving = self._fleet.serving()
        if self._known is None or (serving and serving[0].base.fingerprint != self._known[0]):
            if not serving:
                raise NoReplicaError
            base = serving[0].base.fingerprint
            self._known = base, self._opening.access(base), self._opening.names(base, serving[0].model)
        return self._known[1], self._known[2]

    # What one engine answers

    async def _by_one(self, asking: Asking) -> web.StreamResponse:
        if asking.path.startswith(_ONE_MODEL):
            await asking.names.find(
                asking.path.removeprefix(_ONE_MODEL), asking.holder
            )  # raises for what they may not know
        body = await _body(asking.request)
        given = _as_object(body)
        name = given.get("model") if given is not None else None
        if given is None or not isinstance(name, str) or not name:
            return await self._pass_on(asking, body, None)
        named = await asking.names.find(name, asking.holder)
        if named.model != name:
            body = json.dumps(given | {"model": named.model}).encode()
        return await self._pass_on(asking, body, named, asked=name if named.model != name else "")

    async def _pass_on(self, asking: Asking, body: bytes, named: Named | None, asked: str = "") -> web.StreamResponse:
        """`named`: what the body asks for, which its holder may. None: the engine sees to that."""
        account, whole = self._visits.begin(asking.holder), True
        try:
            call = self._call(asking, body, named, asked, account)
            response, whole = await self._exchange.answer(asking.request, call)
        finally:
            self._visits.end(account, answered=whole)
        return response

    def _call(self, asking: Asking, body: bytes, named: Named | None, asked: str = "", account: str = "") -> Call:
        request, holder = asking.request, asking.holder
        forwarded = request.headers.get("X-Forwarded-For", "")
        told = Introduction(
            client_of(request.remote or "", forwarded, self._trusted_proxies),
            holder.name,
            holder.profile.weight,
            holder.admin,
            asked=asked,
            accounts=f"{self._url}{ACCOUNTS}/{account}" if account else "",
            limits=holder.profile.limits,
            adapters=(EVERYTHING,) if named else holder.profile.adapters,
            base=named is not None or holder.profile.base,
        )
        headers = caller_headers(request.headers)
        headers[header_names.REQUEST_ID] = asking.id
        return Call(request.method, request.path_qs, headers, body, asking.id, told, named.digest if named else None)

    # What several do

    async def _adapters(self, asking: Asking) -> web.StreamResponse:
        return await self._listed(asking, views.merged)

    async def _models(self, asking: Asking) -> web.StreamResponse:
        return await self._listed(asking, views.all_known)

    async def _listed(self, asking: Asking, merge: views.Merge) -> web.StreamResponse:
        """Of what all replicas list, what its holder may know of: over a hub each lists what it has had."""
        answers = await self._ask_all(self._call(asking, b"", None))
        lists = {id: json.loads(said.body)["data"] for id, said in answers.items() if said.status == 200}
        if not lists:
            raise NoReplicaError
        return views.json_answer({"object": "list", "data": await _shown(merge(lists), asking.holder)})

    async def _pin(self, asking: Asking) -> web.StreamResponse:
        """Pinned is one copy, on the replica that requests for it go to; let go are all."""
        given = _as_object(await _body(asking.request)) or {}
        return await (self._everywhere if given.get("pinned") is False else self._by_one)(asking)

    async def _everywhere(self, asking: Asking) -> web.StreamResponse:
        """Each replica that has the adapter in memory does it; one answer of those, or why none could."""
        given = _as_object(await _body(asking.request))
        name = given.get("model") if given is not None else None
        if given is None or not isinstance(name, str):
            return await self._by_one(asking)  # says what is wrong
        named = await asking.names.find(name, asking.holder)
        call = self._call(asking, json.dumps(given | {"model": named.model}).encode(), named, name)
        answers = (await self._ask_all(call)).values()
        if not answers:
            raise NoReplicaError
        said = min(answers, key=lambda one: _TOLD_LAST.get(one.status, 0))
        return said.response()

    async def _ask_all(self, call: Call) -> dict[str, Answered]:
        """What each replica that serves answers, by id; those that don't answer are left out."""
        serving = self._fleet.serving()
        answers = await asyncio.gather(
            *(self._exchange.whole(call, Engine(one.id, one.url, one.secret)) for one in serving)
        )
        return {one.id: answer for one, answer in zip(serving, answers, strict=True) if answer is not None}

    async def _metrics(self, asking: Asking) -> web.StreamResponse:
        if not asking.holder.admin:
            raise NotAllowedError(f"{asking.path} takes an admin's key, and {asking.holder.name}'s is none.")
        return views.metrics(self._fleet, self._exchange.retries)

    # For engines

    async def _account(self, request: web.Request) -> web.Response:
        """An account's name is known to the engine that it was told, and to nobody else, of whom nothing is read."""
        try:
            self._visits.require(name := request.match_info["name"])
            answer = self._visits.do(name, request.match_info["what"], TOLD.validate_json(await request.read()))
            return web.Response(body=ANSWER.dump_json(answer), content_type=views.JSON)
        except NotFoundError:
            return web.Response(status=404)


async def _let_in(access: Access, headers: Mapping[str, str], *, needs_key: bool) -> Holder:
    """Raises InvalidKeyError, or why a key can't be looked up."""
    if needs_key and access.keyring is not None and access.keyring.asks_hub:
        return await asyncio.to_thread(holder_of, access, headers, needs_key=True)
    return holder_of(access, headers, needs_key=needs_key)


async def _shown(entries: list[dict[str, object]], holder: Holder) -> list[dict[str, object]]:
    """Those that the bearer of a hub's token may read; of others the engines have left out what they may not name."""
    reader = holder.reader
    if reader is None:
        return entries
    shelved = {name for entry in entries if "/" in (name := str(entry["id"]))}
    hidden = shelved - await asyncio.to_thread(reader.readable, shelved)
    return [entry for entry in entries if entry["id"] not in hidden]


async def _refuse_names(asking: Asking) -> web.StreamResponse:
    raise NotHereError(
        f"{asking.path} would give a name to one replica alone: publish the adapter to the registry or hub, whose names all know."
    )


async def _body(request: web.Request) -> bytes:
    """All of it, within the time that an engine would give. Raises SlowBodyError."""
    seconds = Terms.send_s + (request.content_length or 0) / Terms.send_bytes_per_s
    try:
        async with asyncio.timeout(seconds):
            return await request.read()
    except TimeoutError:
        raise SlowBodyError(f"The request was not there whole within {seconds:.0f} s.") from None


def _as_object(body: bytes) -> dict[str, object] | None:
    """None for what is no JSON object: an engine says what is wrong with it."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return given if isinstance(given, dict) else None


def failure(path: str, error: GraftError, id: str) -> web.Response:
    """In the shape of the path's dialect."""
    shape = (
        messages.error_shape(error.status, str(error), error.code, id)
        if path.startswith(messages.PATH)
        else {"error": error_body(error.status, str(error), error.code, error.param)}
    )
    answer = views.json_answer(shape, error.status)
    if path.startswith(messages.PATH):
        answer.headers[header_names.MESSAGE_ID] = id
    if error.status in (429, 503):
        answer.headers[header_names.RETRY_AFTER] = str(RETRY_AFTER_S)
    if isinstance(error, InvalidKeyError):
        answer.headers[header_names.AUTHENTICATE] = "Bearer"
    return answer
