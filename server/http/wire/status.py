"""What is asked about the server itself: whether it lives, takes requests, and how it is doing. Answered while it drains, too."""

from flask import Blueprint, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST

from graft.server.http.openapi.document import document as describe_api
from graft.server.http.service import service
from graft.server.operations.drain import DrainingError

blueprint = Blueprint("status", __name__)


@blueprint.get("/health")
def health() -> Response:
    """Alive: the process answers and the engine's thread runs."""
    _require_alive()
    return jsonify(status="ok")


@blueprint.get("/ready")
def ready() -> Response:
    """Able to serve: the base is loaded, the engine takes requests, and the server is not about to end. Keys that are not those
    of their file any more are no reason not to."""
    _require_alive()
    require_open()
    keyring = service().access.keyring
    outdated = {"keys": "outdated"} if keyring is not None and keyring.problem is not None else {}
    return jsonify(status="ready", model=service().base_name, **outdated)


@blueprint.get("/replica")
def replica() -> Response:
    """What an ingress asks: which base this is, and what it has at hand."""
    return jsonify(service().engine.replica_state())


@blueprint.get("/metrics")
def metrics() -> Response:
    return Response(service().engine.metrics(), content_type=CONTENT_TYPE_LATEST)


@blueprint.get("/openapi.json")
def document() -> Response:
    return jsonify(describe_api(service().base_name))


def require_open() -> None:
    """Raises DrainingError once the server takes no new requests."""
    if service().drain.begun:
        raise DrainingError


def _require_alive() -> None:
    """Raises EndedError after a failure that ended the engine, ClosedError while the server shuts down."""
    if (reason := service().engine.health()) is not None:
        raise reason
