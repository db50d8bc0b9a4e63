"""What every view needs: the registry, who is calling, and the parts of a path."""

import secrets
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import BoundedSemaphore
from typing import get_origin
from urllib.parse import unquote

from flask import current_app, g, request, session
from werkzeug.datastructures import MultiDict

from graft.hub.adapters.validation import strict_json
from graft.hub.errors import GraftError, UnauthorizedError
from graft.hub.registry.access import sessions, tokens
from graft.hub.registry.access.callers import OWNER, STRANGER, Caller
from graft.hub.registry.access.quotas import InFlight
from graft.hub.registry.registry import Registry
from graft.hub.request_body import AnyBody, check_body

EXTENSION = "graft"
MAX_ANSWERS = 12  # of the 16 threads that a hub has, if nothing else is said
SESSION = "session"  # the key of the cookie under which a session's name stands


@dataclass(frozen=True)
class Hub:
    """`single_user`: whoever reaches a hub without users is its owner. `inference_url`: the `graft serve` for the playground,
    `inference_key` the hub's key there, where it takes keys.

    `answers` of it that may come at once: each keeps a thread for as long as it lasts.
    """

    registry: Registry
    single_user: bool
    inference_url: str | None
    inference_key: str | None = field(default=None, repr=False)
    in_flight: InFlight = field(default_factory=InFlight)
    answers: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MAX_ANSWERS))


def hub() -> Hub:
    return current_app.extensions[EXTENSION]


def registry() -> Registry:
    return hub().registry


def caller() -> Caller:
    """Who asks, by bearer token, else by the sign-in cookie. Raises UnauthorizedError for a bad bearer token."""
    if "caller" not in g:
        g.caller = _find_caller()
    return g.caller


def _find_caller() -> Caller:
    db = registry().db
    if hub().single_user and not tokens.has_users(db):
        return OWNER
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return tokens.caller_of(db, token.strip())
    if name := session.get(SESSION):
        try:
            return sessions.caller_of_session(db, name)
        except UnauthorizedError:
            session.clear()
    return STRANGER


def read_body(schema: type[AnyBody]) -> AnyBody:
    """The request's JSON. Raises GraftError naming the first field that won't do."""
    try:
        given = strict_json(request.get_data(as_text=True))
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise GraftError("The request's body must be a JSON object (NaN and Infinity are no JSON).")
    return check_body(schema, given)


def read_body_if_any(schema: type[AnyBody]) -> AnyBody:
    """As `read_body`, for a request that may come without one."""
    return read_body(schema) if request.get_data() else check_body(schema, {})


def read_arguments(schema: type[AnyBody], args: MultiDict[str, str] | None = None) -> AnyBody:
    """The URL's arguments (or `args`), those without a value left aside. Raises GraftError naming the first that won't do."""
    given = request.args if args is None else args
    listed = {name for name, field in schema.model_fields.items() if get_origin(field.annotation) is list}
    values = {key: given.getlist(key) if key in listed else given[key] for key in given if key in schema.model_fields}
    return check_body(schema, {key: value for key, value in values.items() if value != ""})


def expect_files() -> None:
    """Let this request be as large as an upload. Called once it is known that its caller may write."""
    request.max_content_length = upload_bytes(registry().max_weights_bytes)


def room_for_body() -> AbstractContextManager[None]:
    """Room for the bytes of this request in the caller's quota. Raises TooLargeError where there is none."""
    return hub().in_flight.room_for(registry().db, caller().name, request.content_length or 0)


def set_body_aside() -> None:
    """As `room_for_body`, of bytes that nothing will name: they count until gc."""
    hub().in_flight.reserve(registry().db, caller().name, request.content_length or 0, secrets.token_hex(16))


def upload_bytes(max_weights_bytes: int) -> int:
    """How large a request that brings files may be: the largest weights in base64, and as much room for the rest."""
    return 2 * max_weights_bytes + (1 << 30)


def endpoint() -> str:
    """This hub's own address, as the client called it."""
    return request.host_url.rstrip("/")


def unquote_part(part: str) -> str:
    return unquote(part)
