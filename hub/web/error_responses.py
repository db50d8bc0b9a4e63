"""Every failure in one shape: JSON `{"error"}` with the headers that Hugging Face clients read, or a page for a person."""

import errno
import logging
import sqlite3
from collections.abc import Mapping
from types import MappingProxyType

from flask import Flask, Response, g, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.wrappers import Response as AnyResponse

from graft.hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GraftError,
    RepoNotFoundError,
    RevisionNotFoundError,
)
from graft.hub.wsgi import request_id

log = logging.getLogger("graft.hub")

# Without X-Error-Code a client takes a 404 for a broken connection.
ERROR_CODES: dict[type[GraftError], str] = {
    RepoNotFoundError: "RepoNotFound",
    RevisionNotFoundError: "RevisionNotFound",
    EntryNotFoundError: "EntryNotFound",
}
# What an error is called that is no GraftError of ours, by its status.
KINDS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "too_large", 429: "too_many_requests"}
MAX_HEADER_CHARS = 1000
DISK_FAILURES = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))
STORAGE_FAILURES = frozenset(
    (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
)


def install(app: Flask) -> None:
    app.register_error_handler(GraftError, failure_of)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(sqlite3.OperationalError, _on_database_error)
    app.register_error_handler(OSError, _on_os_error)
    app.register_error_handler(Exception, _on_bug)
    app.before_request(_name_request)
    app.after_request(_echo_request_id)


def failure(
    status: int,
    message: str,
    *,
    kind: str | None = None,
    code: str | None = None,
    header: str | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Response:
    """The one error response. `kind` is graft's word for the error, `code` goes into X-Error-Code, which HF clients read;
    `header`: what stands in X-Error-Message, were it not the message. `more`: what else they look for in the JSON."""
    for_people = request.accept_mimetypes.best_match(("application/json", "text/html")) == "text/html"
    no_host_of_ours = isinstance(request.routing_exception, SecurityError)  # whose pages could have no links
    if for_people and not request.path.startswith("/api/") and not no_host_of_ours:
        response = Response(render_template("error.html", status=status, message=message), status)
    else:
        response = jsonify({"error": message, "code": kind or KINDS.get(status, "failed"), **more})
        response.status_code = status
    if code:
        response.headers["X-Error-Code"] = code
    response.headers["X-Error-Message"] = header_text(header or message)[:MAX_HEADER_CHARS]
    return response


def header_text(text: str) -> str:
    """What may hold a stranger's words, as a header can carry it: printable ASCII."""
    return "".join(letter if letter.isprintable() else " " for letter in text).encode("ascii", "replace").decode()


def _name_request() -> None:
    g.request_id = request_id(request.headers.get("X-Request-Id", ""))


def _echo_request_id(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.get("request_id", "")
    return response


def failure_of(error: GraftError, more: Mapping[str, str] = MappingProxyType({})) -> Response:
    """The response that says `error`, and `more` of it."""
    known_by = error.sentence if isinstance(error, DisabledRepoError) else None
    code = ERROR_CODES.get(type(error))
    return failure(error.status, str(error), kind=error.code, code=code, header=known_by, more=more)


def _on_http_error(error: HTTPException) -> AnyResponse:
    status = error.code or 500
    if status < 400:  # a redirect on its way out
        return error.get_response()
    return failure(status, error.description or error.name, code="EntryNotFound" if status == 404 else None)


def _on_database_error(error: sqlite3.OperationalError) -> Response:
    # The extended code's low byte is the kind of failure; everything else is a bug of ours.
    return _on_storage_error(error) if error.sqlite_errorcode & 0xFF in STORAGE_FAILURES else _on_bug(error)


def _on_os_error(error: OSError) -> Response:
    # A disk that is full, gone or read-only; anything else, such as a connection's end, is a bug of ours.
    return _on_storage_error(error) if error.errno in DISK_FAILURES else _on_bug(error)


def _on_storage_error(error: Exception) -> Response:
    log.error("request %s: %s", g.get("request_id"), error)
    return failure(
        507, f"The hub can't store or read this now ({error}). Nothing was changed; an operator has to look."
    )


def _on_bug(error: Exception) -> Response:
    log.exception("request %s failed", g.get("request_id"))
    return failure(500, f"The hub failed on its own account; its log has request {g.get('request_id')}.")
