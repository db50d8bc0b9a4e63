"""The hub as one WSGI application: the Hugging Face protocol, graft's own API, and the pages, over one registry.

Puts the parts together; each part is a blueprint in this folder. Starts without torch.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from flask import Flask, request
from flask.json.provider import DefaultJSONProvider
from flask.sessions import SecureCookieSessionInterface
from werkzeug.middleware.proxy_fix import ProxyFix

from graft.hub.registry.access import keys
from graft.hub.registry.access.sessions import SESSION_LIFE
from graft.hub.registry.registry import Registry
from graft.hub.web import api, error_responses, forms, playground, security
from graft.hub.web.huggingface import commit, git_lfs, not_offered, people, read
from graft.hub.web.request import EXTENSION, Hub
from graft.hub.wsgi import LOOPBACK

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

MAX_REQUEST_BYTES = 4 << 20  # the few views that take files ask for more (request.expect_files)
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")  # as a Host header has them


def create_app(
    registry: Registry,
    *,
    host: str = "127.0.0.1",
    trusted_hosts: tuple[str, ...] = (),
    inference_url: str | None = None,
    inference_key: str | None = None,
    behind_proxy: bool = False,
) -> Flask:
    """`host` is what the hub listens on: on loopback, a registry without users is everybody's own (single-user mode).

    Behind a proxy it never is: then loopback is where the whole world comes from.
    """
    app = Flask(__name__)
    single_user = host in LOOPBACK and not behind_proxy
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_REQUEST_BYTES,
        MAX_FORM_MEMORY_SIZE=MAX_REQUEST_BYTES,
        SECRET_KEY=keys.secret(registry.db, "session"),
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SECURE=behind_proxy,
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=SESSION_LIFE,
        # A page elsewhere that gets its name to point here must not reach a hub that trusts its own machine.
        TRUSTED_HOSTS=list((*LOOPBACK_NAMES, *trusted_hosts)) if single_user or trusted_hosts else None,
    )
    keys.secret(registry.db, "lfs")  # made now: the sockets' thread, which asks for it, must not wait for a writer
    app.json = _InOrder(app)
    app.session_interface = _Cookies()
    app.extensions[EXTENSION] = Hub(registry, single_user, inference_url, inference_key)
    app.wsgi_app = KeepQuotedSlashes(ProxyFix(app.wsgi_app) if behind_proxy else app.wsgi_app)  # type: ignore[method-assign]
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    error_responses.install(app)
    security.protect(app)
    for part in (read, people, commit, git_lfs, not_offered, api, forms, playground):
        app.register_blueprint(part.blueprint)
    security.require_known_routes(app)
    return app


class _Cookies(SecureCookieSessionInterface):
    """Cookies that a browser sends over https only, wherever they came over it."""

    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure or super().get_cookie_secure(app)


class _InOrder(DefaultJSONProvider):
    """JSON objects keep the order in which they were made."""

    sort_keys = False


class KeepQuotedSlashes:
    """Lets `%2F` reach the routes as it came: clients quote the slash of a branch name, WSGI servers unquote it.

    The views unquote what they take from the path (`request.unquote_part`).
    """

    def __init__(self, app: "WSGIApplication"):
        self.app = app

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        raw = environ.get("REQUEST_URI") or environ.get("RAW_URI")
        if raw and "%2f" in raw.lower():
            path = raw.partition("?")[0].replace("%2F", "%252F").replace("%2f", "%252F")
            environ["PATH_INFO"] = unquote(quote(path, safe="/%"), "latin-1")
        return self.app(environ, start_response)
