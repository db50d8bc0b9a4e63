"""Whether an answer is one that /openapi.json describes: its status, its headers, its body, each event of a stream."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema_rs import Validator, validator_for

from graft.server.http.openapi.document import document

DOCUMENT: Any = document("test/llama")
# What HTTP itself says of any answer, and browsers are told (cors.py).
PLAIN = {"content-type", "content-length", "connection", "date", "server", "via", "transfer-encoding", "cache-control"}
BROWSERS = {"vary", "x-accel-buffering", "access-control-allow-origin", "access-control-expose-headers"}


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """What is described of a route. None for what is none, or takes another method."""
    path = path.split("?")[0].rstrip("/")
    methods = DOCUMENT["paths"].get("/v1/models/{model}" if path.startswith("/v1/models/") else path, {})
    return methods.get(method.lower())


def response_of(operation: Mapping[str, Any], status: int) -> dict[str, Any]:
    """What is described of an answer with that status. Fails where nothing is."""
    responses = operation["responses"]
    found = responses.get(str(status)) or responses.get(f"{status // 100}XX")
    assert found is not None, f"{operation['operationId']}: {status} is not described"
    return _followed(found)


def require_described(method: str, path: str, status: int, headers: Mapping[str, str], data: bytes) -> None:
    """Of what is no route there is nothing to say."""
    if (operation := operation_of(method, path)) is None:
        return
    response = response_of(operation, status)
    _require_headers(response["headers"], headers, path)
    media = headers["Content-Type"].split(";")[0]
    assert media in response["content"], f"{path}: {status} has no {media}"
    schema = response["content"][media]["schema"]
    if media == "text/event-stream":
        for event in events_of(data):
            _require_valid(schema, event, path)
            _require_content(schema["properties"]["data"], event["data"], path)
    else:
        _require_valid(schema, json.loads(data) if media == "application/json" else data.decode(), path)


def events_of(data: bytes) -> Iterator[dict[str, str]]:
    """Of a stream, each as its fields by name."""
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        yield dict(line.split(": ", 1) for line in block.split("\n"))


def _require_valid(schema: Mapping[str, Any], value: Any, path: str) -> None:
    errors = [str(error) for error in _validator(json.dumps(schema)).iter_errors(value)]
    assert not errors, f"{path}: {value}\n{errors}"


def _require_content(schema: Mapping[str, Any], text: str, path: str) -> None:
    """What JSON a text holds is nothing that a validator looks at by itself."""
    content, *last = schema.get("anyOf", [schema])
    if {"const": text} not in last:
        _require_valid(content["contentSchema"], json.loads(text), path)


def _require_headers(described: Mapping[str, Any], headers: Mapping[str, str], path: str) -> None:
    known = {name.lower(): _followed(one) for name, one in described.items()}
    given = {name.lower(): value for name, value in headers.items()}
    assert given.keys() <= known.keys() | PLAIN | BROWSERS, f"{path}: {given.keys() - known.keys()}"
    assert {name for name, one in known.items() if one.get("required")} <= given.keys(), f"{path}: {given}"
    for name in given.keys() & known.keys():
        schema = known[name]["schema"]
        value = int(given[name]) if schema.get("type") == "integer" else given[name]
        assert _validator(json.dumps(schema)).is_valid(value), f"{path}: {name}: {value}"


def _followed(found: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    if "$ref" not in found:
        return found
    *_, kind, name = found["$ref"].split("/")
    return DOCUMENT["components"][kind][name]


@cache
def _validator(schema: str) -> Validator:
    return validator_for({**json.loads(schema), "components": DOCUMENT["components"]}, validate_formats=True)
