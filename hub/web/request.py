"""What every view needs: the registry, who is calling, and the parts of a path."""

from dataclasses import dataclass
from urllib.parse import unquote

from flask import current_app, g, request, session

from graft.hub.errors import UnauthorizedError
from graft.hub.registry import users
from graft.hub.registry.registry import Registry
from graft.hub.registry.users import OWNER, STRANGER, Caller

EXTENSION = "graft"


@dataclass(frozen=True)
class Hub:
    """`single_user`: whoever reaches a hub without users is its owner. `inference_url`: the `graft serve` for the playground."""

    registry: Registry
    single_user: bool
    inference_url: str | None


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
    if hub().single_user and not users.has_users(db):
        return OWNER
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return users.caller_of(db, token.strip())
    if signed_in := session.get("token_hash"):
        try:
            return users.caller_of_hash(db, signed_in)
        except UnauthorizedError:
            session.clear()
    return STRANGER


def expect_files() -> None:
    """Let this request be as large as an upload. Called once it is known that its caller may write."""
    request.max_content_length = upload_bytes(registry().max_weights_bytes)


def upload_bytes(max_weights_bytes: int) -> int:
    """How large a request that brings files may be: the largest weights in base64, and as much room for the rest."""
    return 2 * max_weights_bytes + (1 << 30)


def endpoint() -> str:
    """This hub's own address, as the client called it."""
    return request.host_url.rstrip("/")


def unquote_part(part: str) -> str:
    return unquote(part)
