"""Headers, cross-site writes, request rates and rights: what stands before every view.

A write without a bearer token rests on a cookie, or on being on this machine, and either can be abused by a page from
elsewhere; browsers say where a request comes from (Sec-Fetch-Site, Origin), so such writes must come from our own pages.
"""

import threading
import time
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request

from graft.hub.errors import ForbiddenError
from graft.hub.registry.access.callers import OWNER
from graft.hub.registry.access.permissions import RULES, Right, require_right
from graft.hub.registry.access.quotas import require_room
from graft.hub.web import error_responses
from graft.hub.web.request import caller, registry
from graft.hub.web.route_actions import ROUTE_ACTIONS

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
WRITING_METHODS = ("POST", "PUT")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

WINDOW_S = 300
MAX_TRACKED = 50_000
THE_REST = ""


def protect(app: Flask, *, requests_a_window: int = 30_000) -> None:
    app.extensions["graft-rates"] = Rates(requests_a_window)
    app.before_request(_refuse_cross_site_writes)
    app.before_request(_know_caller)
    app.before_request(_limit_rate)
    app.before_request(_require_right)
    app.before_request(_require_room)
    app.after_request(_add_headers)


class Rates:
    """Requests in the present window of WINDOW_S seconds, per caller. Everyone starts anew with each window.

    Callers beyond the first MAX_TRACKED of a window are counted together.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._window = 0
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def count(self, who: str, limit: int | None = None) -> tuple[int, int]:
        """Note one request, of those that `limit` allows, or the limit of all.

        Returns how many are left and the seconds until the window ends.
        """
        window, into = divmod(time.time(), WINDOW_S)
        with self._lock:
            if window != self._window:
                self._window, self._counts = int(window), {}
            if who not in self._counts and len(self._counts) >= MAX_TRACKED:
                who = THE_REST
            self._counts[who] = self._counts.get(who, 0) + 1
            return (limit or self.limit) - self._counts[who], int(WINDOW_S - into) + 1


def _refuse_cross_site_writes() -> None:
    if request.method in SAFE_METHODS or "Authorization" in request.headers:
        return
    origin = request.headers.get("Origin")
    same_host = origin is None or urlsplit(origin).netloc == request.host
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none") or not same_host:
        raise ForbiddenError("This write came from another site's page. Open the hub itself and repeat it there.")


def _know_caller() -> None:
    """A stale token ends here, with 401, whatever was asked for: nothing after this meets an unknown caller."""
    caller()


def _limit_rate() -> Response | None:
    me = caller()
    if me is OWNER:  # alone with their own registry
        return None
    # By who they proved to be: whatever else a request says of its sender can be made up anew for each.
    who = f"user {me.name}" if me.scope else f"address {request.remote_addr}"
    left, seconds = current_app.extensions["graft-rates"].count(who, me.quota.requests)
    if left >= 0:
        return None
    response = error_responses.failure(429, f"Too many requests: wait {seconds} s.")
    response.headers["Retry-After"] = str(seconds)
    response.headers["RateLimit"] = f'"api";r=0;t={seconds}'
    return response


def require_known_routes(app: Flask) -> None:
    """Raises LookupError for a route of which nobody has said who may take it."""
    if unknown := {rule.endpoint for rule in app.url_map.iter_rules()} - ROUTE_ACTIONS.keys():
        raise LookupError(f"route_actions.py has no line for {', '.join(sorted(unknown))}: say what they do.")


def _require_right() -> None:
    """The right that the route's action takes, before anything else is looked at."""
    if request.endpoint is not None:
        require_right(caller(), *ROUTE_ACTIONS[request.endpoint])


def _require_room() -> None:
    """Whoever is over their quota writes nothing more, be it ever so small; deleting is how they get below it."""
    rights = {RULES[action].right for action in ROUTE_ACTIONS.get(request.endpoint or "", ())}
    if request.method in WRITING_METHODS and rights & {Right.WRITE, Right.EVALUATE}:
        require_room(registry().db, caller().name, 0)


def _add_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if caller_is_known(response):
        response.headers.setdefault("Cache-Control", "private, no-cache")
    return response


def caller_is_known(response: Response) -> bool:
    """Whether the answer may depend on who asked, so that no shared cache may keep it."""
    return response.status_code < 400 and request.blueprint is not None and caller().scope is not None
