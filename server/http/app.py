"""The server over HTTP: OpenAI's API, the adapters, health and numbers, as one WSGI application around an engine.

Routes and errors only: bodies are checked in schemas.py, read by completions.py, answered by answer.py, written by
response_shapes.py. Every error has OpenAI's one shape, and no internals in it. Each request is served by one thread, but for
the events of streams, which one thread writes for all (streaming/pump.py).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flask import Blueprint, Flask, Response, g, jsonify, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BareResponse

from graft.hub.errors import GraftError, NotFoundError
from graft.hub.wsgi import request_id
from graft.server.chat.speech import Speech
from graft.server.engine.client import EngineClient
from graft.server.engine.inventory import AdapterEntry, NotLoadedError, Placed
from graft.server.errors import InvalidKeyError
from graft.server.http import cors
from graft.server.http.access import header_names
from graft.server.http.access.gate import guard, may_use_base, name_model, usable
from graft.server.http.access.limit_headers import ANTHROPIC, OPENAI, limit_headers
from graft.server.http.adapters import describe
from graft.server.http.answer import Answer
from graft.server.http.clients import AnswerPlaces, Network, Places
from graft.server.http.completions import AskedCompletions, read_chat, read_completion
from graft.server.http.dialects import embeddings, messages, responses, vllm
from graft.server.http.dialects.answering import answer
from graft.server.http.response_shapes import (
    CHAT,
    COMPLETION,
    ResponseShape,
    Writer,
    broken_message,
    error_body,
    public_message,
)
from graft.server.http.schemas import (
    AdapterBody,
    BadField,
    ChatBody,
    CompletionBody,
    GenerationBody,
    PinBody,
    StreamOptions,
)
from graft.server.http.service import (
    EXTENSION,
    Service,
    begin_record,
    look_up,
    read_body,
    service,
    shown_model,
    take_in,
    taking_place,
    unknown_model,
)
from graft.server.http.wire import status
from graft.server.http.wire.connections import MAX_BODY_BYTES, REFUSED
from graft.server.keys.access import Access
from graft.server.keys.holders import ANYBODY
from graft.server.keys.standing import RateLimitError
from graft.server.keys.visits import Visit
from graft.server.operations.drain import Drain
from graft.server.operations.patience import DeadlineError, Disconnected
from graft.server.served_version import Served

log = logging.getLogger("graft.server")

MAX_AT_ONCE = 256
MAX_HEADER_CHARS = 1000
RETRY_AFTER_S = 1
_CHAT_INSTEAD = "use /v1/chat/completions, which takes the whole conversation every time."
_V1 = "every path begins with /v1, so a client's base URL is http://HOST:PORT/v1."
# Paths of other APIs, and what does here what they do.
ELSEWHERE = {
    "/v1/assistants": _CHAT_INSTEAD,
    "/v1/threads": _CHAT_INSTEAD,
    "/api/chat": _CHAT_INSTEAD,
    "/api/generate": "use /v1/completions.",
    "/v1/engines": "use /v1/models.",
    **dict.fromkeys(("/embed", "/api/embed", "/api/embeddings"), "use /v1/embeddings."),
    "/generate": "use /v1/completions.",
    **dict.fromkeys(
        (
            "/chat/completions",
            "/completions",
            "/models",
            "/responses",
            "/messages",
            "/embeddings",
            "/v1/v1/chat/completions",
            "/v1/v1/messages",
        ),
        _V1,
    ),
}
blueprint = Blueprint("v1", __name__)
Naming = TypeVar("Naming", bound=GenerationBody | AdapterBody)  # a body that names a model
AnyAdapterBody = TypeVar("AnyAdapterBody", bound=AdapterBody)


def create_app(
    engine: EngineClient,
    places: Places | None = None,
    drain: Drain | None = None,
    *,
    base_name: str | None = None,
    max_at_once: int = MAX_AT_ONCE,
    cors_origins: Sequence[str] = (),
    trusted_proxies: Sequence[Network] = (),
    tool_format: str | None = None,
    adapter_root: Path | None = None,
    open_access: Callable[[], Access] = Access,
    request_timeout: float = math.inf,
) -> Flask:
    """`base_name`: what the bare base is called in `model` (default: its recorded id). `places`: for answers under way; more
    are told to come again, so that threads remain for everything else (default: `max_at_once` of this application's own). `cors_origins`: whose pages may call.
    `trusted_proxies`: who is believed about whom a request comes from. `tool_format`: how calls of tools are written
    (chat/tool_formats.py), whatever the chat template says. `adapter_root`: clients may have folders below it loaded. `open_access`: who may
    come in. `drain`: once it has begun, nothing new is answered. `request_timeout`: seconds that an answer may take."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    assert isinstance(app.json, DefaultJSONProvider)
    app.json.sort_keys = False
    app.url_map.strict_slashes = False
    app.extensions[EXTENSION] = Service(
        engine,
        base_name or engine.base.spec.id or "base",
        places or AnswerPlaces(max_at_once),
        trusted_proxies,
        tool_format,
        adapter_root,
        open_access(),
        drain or Drain(),
        request_timeout,
    )
    app.register_blueprint(blueprint)
    for routes in (responses, messages, embeddings, vllm, status):
        app.register_blueprint(routes.blueprint)
    app.before_request(_begin)
    app.before_request(_refuse)
    cors.allow(app, cors_origins)
    guard(app)  # a browser asks for what it may do without a key
    app.before_request(_take)
    app.after_request(_stamp)
    app.register_error_handler(GraftError, _on_graft_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Disconnected, _on_disconnect)
    app.register_error_handler(Exception, _on_bug)
    return app


# Completions


@blueprint.post("/v1/completions")
def completions() -> Response:
    body = _body(CompletionBody)
    return _complete(body, lambda speech: read_completion(body, speech), COMPLETION)


@blueprint.post("/v1/chat/completions")
def chat_completions() -> Response:
    body = _body(ChatBody)
    return _complete(body, lambda speech: read_chat(body, speech), CHAT, body.chat_template)


def _complete(
    body: GenerationBody, read: Callable[[Speech], AskedCompletions], shape: ResponseShape, chat_template: str = ""
) -> Response:
    options = body.stream_options or StreamOptions()

    def make_writer(under_way: Answer) -> Writer:
        return Writer(
            shape,
            under_way,
            shown_model(body.model),
            g.request_id,
            _fingerprint(),
            service().names,
            options.include_usage,
            options.continuous_usage_stats,
        )

    return answer(body, read, make_writer, chat_template)


# Models and adapters


@blueprint.get("/v1/models")
def models() -> Response:
    placed = service().engine.adapters()
    adapters = [_model(entry, placed) for entry in usable(service().engine.models())]
    return jsonify(object="list", data=[*([_base_model()] if may_use_base() else []), *adapters])


@blueprint.get("/v1/models/<path:name>")
def model(name: str) -> Response:
    name_model(name)
    if name == service().base_name:
        return jsonify(_base_model())
    return jsonify(_model(look_up(name), service().engine.adapters()))


@blueprint.get("/v1/adapters")
def adapters() -> Response:
    placed = service().engine.adapters()
    data = [describe(entry, placed.get(entry.digest or "", Placed())) for entry in usable(service().engine.models())]
    return jsonify(object="list", data=data)


@blueprint.post("/v1/adapters/load")
def load() -> Response:
    engine = service().engine
    return _move_adapter(AdapterBody, lambda body, who: engine.load(body.model, who.client, who.weight, g.patience))


@blueprint.post("/v1/adapters/unload")
def unload() -> Response:
    return _move_adapter(AdapterBody, lambda body, who: service().engine.unload(body.model))


@blueprint.post("/v1/adapters/pin")
def pin() -> Response:
    return _move_adapter(
        PinBody, lambda body, who: service().engine.pin(body.model, body.pinned, who.client, who.weight, g.patience)
    )


def _move_adapter(schema: type[AnyAdapterBody], move: Callable[[AnyAdapterBody, Visit], Served]) -> Response:
    """Do something with an adapter for who asks and say how it stands now."""
    body = _body(schema)
    if body.model == service().base_name:
        raise BadField(f"{body.model} is the base, which is always there; name an adapter.", "model")
    try:
        with taking_place() as visit:
            g.served = move(body, visit)
    except NotLoadedError:
        raise
    except NotFoundError as error:
        raise unknown_model(error) from None
    entry = replace(service().engine.known_model(body.model), name=shown_model(body.model))
    placed = service().engine.adapters().get(g.served.digest or "", Placed())
    return jsonify(describe(entry, placed))


def _base_model() -> dict[str, object]:
    spec = service().engine.base.spec
    return {
        "id": service().base_name,
        "object": "model",
        "created": service().started,
        "owned_by": "graft",
        "root": service().base_name,
        "parent": None,
        "fingerprint": spec.fingerprint,
        "kind": "base",
        "parameters": spec.parameters,
        "max_model_len": service().engine.base.max_model_len,
    }


def _model(entry: AdapterEntry, placed: dict[str, Placed]) -> dict[str, object]:
    head = {
        "id": entry.name,
        "object": "model",
        "created": service().started,
        "owned_by": "graft",
        "root": entry.name,
        "parent": service().base_name,
    }
    return head | describe(entry, placed.get(entry.digest or "", Placed()))


# Around every request


def _body(schema: type[Naming]) -> Naming:
    """The checked body. Raises BadField, or a 415 for another media type."""
    body = read_body(schema)
    name_model(body.model)
    return body


def _begin() -> None:
    g.request_id = request_id(request.headers.get(header_names.REQUEST_ID, ""))
    g.served = Served()
    g.ignored = []
    g.holder, g.accounts = ANYBODY, service().engine.accounts
    g.asked = ""
    g.visit = None
    g.record = begin_record()


def _refuse() -> None:
    """Raises an HTTPException for what is no request, or too large or slow a one: nothing of it is looked at."""
    if (refused := request.environ.get(REFUSED)) is not None:
        raise refused


def _take() -> None:
    """Raises DrainingError, or as `take_in`: who has shown no key where one is needed learns nothing of it."""
    if request.blueprint != status.blueprint.name:
        status.require_open()
    take_in()


def _stamp(response: Response) -> Response:
    response.headers[header_names.REQUEST_ID] = g.request_id
    if g.served.digest:
        response.headers[header_names.ADAPTER_DIGEST] = g.served.digest
    if g.served.revision:
        response.headers[header_names.ADAPTER_REVISION] = g.served.revision
    if g.ignored:
        response.headers[header_names.IGNORED_FIELDS] = ", ".join(map(_header_word, g.ignored))[:MAX_HEADER_CHARS]
    if g.visit is not None:
        response.headers.update(limit_headers(g.visit.standing, ANTHROPIC if _is_message() else OPENAI))
    g.record.served, g.record.status = g.served, response.status_code
    if request.blueprint != status.blueprint.name or response.status_code >= 400:
        response.call_on_close(g.record.write)
    service().engine.count_answer(request.url_rule.rule if request.url_rule else "none", response.status_code)
    return response


def _is_message() -> bool:
    """Whether Anthropic's dialect is spoken, be there such a route or not."""
    return request.path.startswith(messages.PATH)


def _header_word(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text)


def _failure(status: int, message: str, code: str | None, param: str | None = None) -> Response:
    g.record.error = code or ""
    shape = messages.error_shape(status, message, code, g.request_id) if _is_message() else None
    response = jsonify(shape or {"error": error_body(status, message, code, param)})
    response.status_code = status
    if status in (429, 503):
        response.headers[header_names.RETRY_AFTER] = str(RETRY_AFTER_S)
    return response


def _on_graft_error(error: GraftError) -> Response:
    if error.status >= 500:
        log.error("request %s: %s", g.request_id, error)
    response = _failure(error.status, public_message(error, g.request_id), error.code, error.param)
    if isinstance(error, RateLimitError):
        response.headers[header_names.RETRY_AFTER] = str(math.ceil(error.retry_s))
    if isinstance(error, DeadlineError):
        response.headers[header_names.SHOULD_RETRY] = "false"  # clients would ask for the same again
    if isinstance(error, InvalidKeyError):
        response.headers[header_names.AUTHENTICATE] = "Bearer"
    return response


def _on_http_error(error: HTTPException) -> BareResponse:
    status = error.code or 500
    if status < 400:  # a redirect on its way out
        return error.get_response()
    message = {
        404: f"There is no {request.path} here: {ELSEWHERE.get(request.path.rstrip('/'), 'see /openapi.json.')}",
        405: f"{request.path} takes {', '.join(sorted(getattr(error, 'valid_methods', None) or ()))} only.",
        413: f"The body is larger than {MAX_BODY_BYTES} bytes.",
    }.get(status, error.description or error.name)
    response = _failure(status, message, error.name.lower().replace(" ", "_"))
    if status == 405:
        response.headers[header_names.ALLOW] = ", ".join(getattr(error, "valid_methods", None) or ())
    return response


def _on_disconnect(error: Disconnected) -> Response:
    return _failure(499, "The client closed the connection.", "client_closed_request")


def _on_bug(error: Exception) -> Response:
    log.exception("request %s failed", g.request_id)
    return _failure(500, broken_message(g.request_id), "internal_error")


def _fingerprint() -> str:
    return f"fp_{service().engine.base.spec.fingerprint[:16]}"
