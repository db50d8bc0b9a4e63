"""The description of the HTTP interface, made from the schemas that check it: for client generators and fuzz tests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from graft.server.http.request_fields import IGNORED, MESSAGE_NEUTRAL, NEUTRAL
from graft.server.http.schemas import AdapterBody, ChatBody, CompletionBody, PinBody

_BODIES = (CompletionBody, ChatBody, AdapterBody, PinBody)
_SCHEMAS = "#/components/schemas/"
# path -> (method, what it does, body's schema or None, answers besides 200)
_ROUTES: dict[str, tuple[str, str, type | None, tuple[str, ...]]] = {
    "/v1/models": ("get", "The base and its adapters.", None, ()),
    "/v1/models/{model}": ("get", "One of them.", None, ("404",)),
    "/v1/completions": ("post", "Continue prompts.", CompletionBody, ("4XX", "5XX")),
    "/v1/chat/completions": ("post", "Answer a conversation.", ChatBody, ("4XX", "5XX")),
    "/v1/adapters": ("get", "The adapters: what they are and in which memory.", None, ()),
    "/v1/adapters/load": ("post", "Bring an adapter to the device and prove it.", AdapterBody, ("4XX", "5XX")),
    "/v1/adapters/unload": ("post", "Take an adapter out of memory.", AdapterBody, ("4XX", "5XX")),
    "/v1/adapters/pin": ("post", "Keep an adapter in memory, or let it go again.", PinBody, ("4XX", "5XX")),
    "/health": ("get", "Whether the process is alive.", None, ("503",)),
    "/ready": ("get", "Whether it takes requests.", None, ("503",)),
    "/metrics": ("get", "Numbers for Prometheus.", None, ()),
    "/openapi.json": ("get", "This document.", None, ()),
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}


def document(base_name: str) -> dict[str, object]:
    """OpenAPI 3.1. `base_name` is an example of a model."""
    _, made = models_json_schema([(body, "validation") for body in _BODIES], ref_template=_SCHEMAS + "{model}")
    schemas = {name: _sent_schema(schema, name) for name, schema in made["$defs"].items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "graft serve", "version": "1", "description": f"Adapters on {base_name}, one a request."},
        "paths": {path: {method: _operation(path, method)} for path, (method, *_) in _ROUTES.items()},
        "components": {"schemas": schemas | {"Error": _ERROR}},
    }


def _operation(path: str, method: str) -> dict[str, object]:
    _, summary, body, failures = _ROUTES[path]
    failure = {"description": "What is wrong.", "content": _json({"$ref": _SCHEMAS + "Error"})}
    operation: dict[str, object] = {
        "summary": summary,
        "operationId": (method + path).replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {"200": {"description": "Done.", "content": _answer(path)}} | dict.fromkeys(failures, failure),
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _json({"$ref": _SCHEMAS + body.__name__})}
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _answer(path: str) -> dict[str, object]:
    answer = _json({"type": "object"})
    if path.endswith("/completions"):
        return answer | {"text/event-stream": {}}
    return {"text/plain": {"schema": {"type": "string"}}} if path == "/metrics" else answer


def _json(schema: dict[str, object]) -> dict[str, object]:
    return {"application/json": {"schema": schema}}


def _sent_schema(schema: dict[str, Any], name: str) -> dict[str, object]:
    """A body as clients may send it: null for whatever isn't required, and the fields that are taken and not used."""
    required = set(schema.get("required", ()))
    properties = {
        key: value if key in required else {"anyOf": [value, {"type": "null"}]}
        for key, value in schema.get("properties", {}).items()
    }
    if "messages" in properties or "prompt" in properties:
        properties |= {key: {"description": "Accepted, and of no effect."} for key in sorted(IGNORED)}
        properties |= {key: {"enum": [None, *values]} for key, values in NEUTRAL.items() if key not in properties}
    if name == "MessageBody":
        properties |= {key: {"enum": [None, *values]} for key, values in MESSAGE_NEUTRAL.items()}
    return schema | {"properties": properties}
