"""Pages of other origins that may call this server from a browser. Without any, browsers keep all of them off."""

from collections.abc import Sequence

from flask import Flask, Response, request

from graft.server.http.access import header_names, limit_headers

EXPOSED = ", ".join((*header_names.OWN, *limit_headers.NAMES))
MAX_AGE_S = 3600


def _allowed(origin: str | None, origins: Sequence[str]) -> str | None:
    return "*" if origin and "*" in origins else origin if origin in origins else None


def headers_for(origin: str | None, origins: Sequence[str]) -> dict[str, str]:
    """What says whether a page of `origin` may read an answer."""
    allowed = _allowed(origin, origins)
    if allowed is None:
        return {"Vary": "Origin"}
    return {"Vary": "Origin", "Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": EXPOSED}


def allow(app: Flask, origins: Sequence[str]) -> None:
    """Answer browsers for pages of `origins` ("*": of any), such as "http://localhost:3000"."""

    def preflight() -> Response | None:
        if (
            request.method != "OPTIONS"
            or "Access-Control-Request-Method" not in request.headers
            or not _allowed(request.headers.get("Origin"), origins)
        ):
            return None
        response = Response(status=204)
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
        response.headers["Access-Control-Allow-Headers"] = request.headers.get("Access-Control-Request-Headers", "*")
        response.headers["Access-Control-Max-Age"] = str(MAX_AGE_S)
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            response.headers["Access-Control-Allow-Private-Network"] = "true"
        return response

    def stamp(response: Response) -> Response:
        for name, value in headers_for(request.headers.get("Origin"), origins).items():
            response.headers.add(name, value)
        return response

    app.before_request(preflight)
    app.after_request(stamp)
