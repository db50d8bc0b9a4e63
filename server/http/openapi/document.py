"""The description of the HTTP interface, made from the schemas that check it: for client generators and fuzz tests."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from graft.server.http.access.routes import Need
from graft.server.http.openapi.events import Stream
from graft.server.http.openapi.failures import ERRORS, FAILURES, failures_of
from graft.server.http.openapi.headers import HEADERS
from graft.server.http.openapi.routes import ROUTES, Answer, Route
from graft.server.http.request_fields import IGNORED, MESSAGE_NEUTRAL
from graft.server.http.schemas import OpenBody

_Schema = dict[str, Any]  # JSON's
_SCHEMAS = "#/components/schemas/"
_RESPONSES = "#/components/responses/"
_KEY = "Where the server was started with keys; else none is asked for."
_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": _KEY},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": _KEY},
}
_MAY_NEED_KEY: list[_Schema] = [*({name: []} for name in _SECURITY_SCHEMES), {}]


def document(base_name: str) -> dict[str, object]:
    """OpenAPI 3.1. `base_name` is an example of a model."""
    sent = {body for route in ROUTES.values() for body in route.bodies}
    answers = {route.answer for route in ROUTES.values() if route.answer is not None}
    given = {answer for answer in answers if issubclass(answer, BaseModel)}
    given |= {route.stream.data for route in ROUTES.values() if route.stream} | ERRORS.keys()
    return {
        "openapi": "3.1.0",
        "info": {"title": "graft serve", "version": "1", "description": f"Adapters on {base_name}, one a request."},
        "paths": {path: {route.method: _operation(path, route)} for path, route in ROUTES.items()},
        "components": {
            "schemas": {**_schemas_of(given), **_sent_schemas(sent)},
            "responses": _failed_responses(),
            "headers": dict(HEADERS),
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _schemas_of(models: Collection[type[BaseModel]]) -> dict[str, _Schema]:
    """Name -> JSON schema, of the models and what they hold."""
    ordered = sorted(models, key=lambda model: model.__name__)
    _, made = models_json_schema([(model, "validation") for model in ordered], ref_template=_SCHEMAS + "{model}")
    schemas: dict[str, _Schema] = made["$defs"]
    return schemas


def _operation(path: str, route: Route) -> dict[str, object]:
    operation: dict[str, object] = {
        "summary": route.summary,
        "operationId": (route.method + path).replace("/", "_").replace("{", "").replace("}", ""),
        "responses": _responses(route, path),
    }
    if route.need is not Need.NOTHING:
        operation["security"] = _MAY_NEED_KEY
    if route.bodies:
        named: list[dict[str, object]] = [_ref(body) for body in route.bodies]
        content = _json(named[0] if len(named) == 1 else {"anyOf": named})
        operation["requestBody"] = {"required": True, "content": content}
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _responses(route: Route, path: str) -> dict[str, object]:
    content = _answer(route.answer, route.stream)
    done = {"description": "Done.", "headers": _headers(route.headers(path)), "content": content}
    failed = failures_of(route.need, counted=route.names_model(path))
    return {"200": done, **{status: {"$ref": _RESPONSES + _failure_name(route.error, status)} for status in failed}}


def _failed_responses() -> dict[str, object]:
    """By the name of their shape and their status: of all routes the same."""
    return {
        _failure_name(error, status): {
            "description": failure.what,
            "headers": _headers((*headers, *failure.headers)),
            "content": _json(_ref(error)),
        }
        for error, headers in ERRORS.items()
        for status, failure in FAILURES.items()
    }


def _failure_name(error: type[BaseModel], status: str) -> str:
    return error.__name__ + status


def _headers(names: Iterable[str]) -> dict[str, object]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _answer(answer: Answer | None, stream: Stream | None) -> dict[str, object]:
    if answer is None:
        return _json({"type": "object"})
    if not issubclass(answer, BaseModel):
        return {"text/plain": {"schema": {"type": "string"}}}
    events = {"text/event-stream": {"schema": stream.event(_ref(stream.data))}} if stream else {}
    return _json(_ref(answer)) | events


def _ref(model: type[BaseModel]) -> dict[str, object]:
    return {"$ref": _SCHEMAS + model.__name__}


def _json(schema: dict[str, object]) -> dict[str, object]:
    return {"application/json": {"schema": schema}}


def _sent_schemas(sent: Collection[type[BaseModel]]) -> dict[str, object]:
    """Bodies as clients may send them, and what these hold."""
    not_honoured = {body.__name__: body.not_honoured for body in sent if issubclass(body, OpenBody)}
    return {name: _sent_schema(schema, name, not_honoured.get(name)) for name, schema in _schemas_of(sent).items()}


def _sent_schema(schema: _Schema, name: str, not_honoured: Mapping[str, tuple[object, ...]] | None) -> _Schema:
    """null for whatever isn't required, and the fields that are taken and not used."""
    required = set(schema.get("required", ()))
    properties = {
        key: value if key in required else {"anyOf": [value, {"type": "null"}]}
        for key, value in schema.get("properties", {}).items()
    }
    if not_honoured is not None:
        ignored = {key: {"description": "Accepted, and of no effect."} for key in sorted(IGNORED)}
        neutral = {key: {"enum": [None, *values]} for key, values in not_honoured.items()}
        properties = neutral | ignored | properties
    if name == "MessageBody":
        properties |= {key: {"enum": [None, *values]} for key, values in MESSAGE_NEUTRAL.items()}
    return schema | {"properties": properties}
