"""What the routes share: the application's parts, a request's body, the client that sends it."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from flask import Response, after_this_request, current_app, g, request

from graft.hub.errors import GraftError, NotFoundError
from graft.hub.request_body import AnyBody
from graft.server.chat.detokenizer import Names
from graft.server.chat.speech import Speech, Speeches
from graft.server.engine.client import EngineClient
from graft.server.engine.inventory import AdapterEntry
from graft.server.errors import BusyError
from graft.server.http.clients import Network, Places, client_of
from graft.server.http.schemas import BadField, OpenBody, WaitingBody, parse
from graft.server.http.streaming.pump import Pump
from graft.server.keys.access import Access
from graft.server.keys.holders import Holder
from graft.server.keys.rights import UnknownModelError, unknown_to
from graft.server.keys.visits import Visit
from graft.server.operations.body_room import MOST_BODIES_BYTES, BodyRoom
from graft.server.operations.drain import Drain
from graft.server.operations.patience import Patience
from graft.server.operations.request_log import RequestRecord, plain
from graft.server.served_version import Served

EXTENSION = "graft"
JSON = "application/json"
TIMEOUT_HEADER = "X-Request-Timeout"


class UnsupportedMediaError(GraftError):
    """A body that is no JSON by its own account."""

    status = 415
    code = "unsupported_media_type"


class Service:
    """Of one application."""

    def __init__(
        self,
        engine: EngineClient,
        base_name: str,
        places: Places,
        trusted_proxies: Sequence[Network],
        tool_format: str | None,
        adapter_root: Path | None,
        access: Access,
        drain: Drain,
        most_s: float,
    ):
        self.engine = engine
        self.base_name = base_name
        self.started = int(time.time())
        assert engine.base.tokenizer is not None  # text comes in and goes out
        self.tokenizer = engine.base.tokenizer
        self.names = Names(self.tokenizer)
        self.speeches = Speeches(engine, base_name, tool_format)
        self.places = places
        self.bodies = BodyRoom(MOST_BODIES_BYTES)
        self.pump = Pump(engine)
        self.trusted_proxies = trusted_proxies
        self.adapter_root = adapter_root
        self.access = access
        self.drain = drain
        self.most_s = most_s


def service() -> Service:
    return current_app.extensions[EXTENSION]


def read_body(schema: type[AnyBody]) -> AnyBody:
    """The checked body. Raises BadField, or a 415 for another media type.

    Without any it is taken for JSON, but for a browser's: pages of other origins can send such a body unasked, and no other.
    """
    if request.mimetype != JSON and (request.mimetype or "Origin" in request.headers):
        raise UnsupportedMediaError(f"Send JSON, with the header Content-Type: {JSON}.")
    body = parse(schema, request.get_data())
    if isinstance(body, OpenBody):
        g.ignored = body.ignored
    if isinstance(body, WaitingBody):
        g.patience = g.patience.within(body.timeout)
    return body


def shown_model(name: str) -> str:
    """What the client calls the model of that name: an ingress has the version in its place."""
    asked: str = g.asked
    return asked or name


def find_served(name: str) -> Served:
    """What a name stands for, where that can be told without a network: for the headers of an error."""
    return Served() if name == service().base_name else service().engine.served(name)


def unknown_model(error: NotFoundError) -> UnknownModelError:
    """No model of the name that was asked for, as its holder is told."""
    holder: Holder = g.holder
    return unknown_to(holder, error)


@contextmanager
def taking_place() -> Iterator[Visit]:
    """One of the places for answers, for as long as the context lasts, and one of those that the key has. Raises BusyError, or
    RateLimitError."""
    visit = g.visit = Visit(g.accounts, g.holder, _client())
    places = service().places  # a stream ends when the request is none of the application's any more
    if not places.enter(visit.client):
        visit.look()
        raise BusyError("The server is answering as many requests as it can: try again in a moment.")
    try:
        with visit.under_way():
            yield visit
    finally:
        places.leave(visit.client)


def look_up(name: str) -> AdapterEntry:
    """An adapter by its name. Where a hub has to be asked it takes a place as an answer does: who waits for that leaves threads
    for lists, health and metrics. Raises UnknownModelError, BusyError, RateLimitError, or what else the look-up ends with."""
    engine = service().engine
    with taking_place() if engine.asks_hub(name) else nullcontext():
        try:
            entry = engine.model(name, _client(), g.patience)
        except NotFoundError as error:
            raise unknown_model(error) from None
    g.served = Served(name, entry.digest, entry.revision)
    return entry


def _client() -> str:
    """By whom clients are told apart: their keys, else their addresses."""
    holder: Holder = g.holder
    return f"key {holder.name}" if holder.name else g.record.client


def begin_record() -> RequestRecord:
    """Of the request that is at hand."""
    client = client_of(request.remote_addr or "", request.headers.get("X-Forwarded-For", ""), service().trusted_proxies)
    route = request.url_rule.rule if request.url_rule else plain(request.path)
    return RequestRecord(g.request_id, request.method, route, client, request.headers.get("Traceparent", ""))


def take_in() -> None:
    """Of the request that is at hand its patience, as its header says, and room for its body until it is answered, or its stream
    begins. Raises BadField, or BusyError."""
    g.patience = _patience()
    size, bodies = request.content_length or 0, service().bodies
    if not bodies.enter(size):
        raise BusyError("The server is reading as many large bodies as it can: try again in a moment.")

    @after_this_request
    def leave(response: Response) -> Response:
        bodies.leave(size)
        return response


def _patience() -> Patience:
    given = request.headers.get(TIMEOUT_HEADER, "")
    gone = request.environ.get("waitress.client_disconnected", lambda: False)
    whole = Patience(gone, lambda: service().drain.begun, service().most_s, time.monotonic())
    return whole.within(_read_seconds(given) if given else None)


def _read_seconds(given: str) -> float:
    """Raises BadField."""
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise BadField(f"{TIMEOUT_HEADER} is a number of seconds above 0, not {given[:20]!r}.", TIMEOUT_HEADER)
    return seconds


def find_speech(model: str, chat_template: str, client: str) -> Speech:
    """Waits until the adapter is in host memory. Raises UnknownModelError, or what else a request for it would get."""
    try:
        return service().speeches.speech(model, chat_template, client, g.patience)
    except NotFoundError as error:
        raise unknown_model(error) from None
