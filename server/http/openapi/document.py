"""The description of the HTTP interface, made from the schemas that check it: for client generators and fuzz tests."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from graft.server.http.dialects import vllm_bodies as vllm
from graft.server.http.dialects.embedding_bodies import EmbeddingsAnswer, EmbeddingsBody
from graft.server.http.dialects.messages_body import CountTokensBody, MessagesBody
from graft.server.http.dialects.responses_body import ResponsesBody
from graft.server.http.openapi import answers, dialect_answers
from graft.server.http.request_fields import IGNORED, MESSAGE_NEUTRAL
from graft.server.http.schemas import AdapterBody, ChatBody, CompletionBody, OpenBody, PinBody

_Schema = dict[str, Any]  # JSON's
_SCHEMAS = "#/components/schemas/"
_TEXT = str  # an answer that is no JSON


@dataclass(frozen=True)
class _Route:
    """`bodies`: one of these is sent. `answer`: its shape, None for any object; it may be streamed where the body asks for
    that. `failures`: answers besides 200, of the shape `error`."""

    method: str
    summary: str
    bodies: tuple[type[BaseModel], ...] = ()
    answer: type[BaseModel] | type[str] | None = None
    failures: tuple[str, ...] = ()
    error: str = "Error"


def _post(summary: str, *bodies: type[BaseModel], answer: type[BaseModel] | type[str], error: str = "Error") -> _Route:
    return _Route("post", summary, bodies, answer, ("4XX", "5XX"), error)


_ROUTES: dict[str, _Route] = {
    "/v1/models": _Route("get", "The base and its adapters.", answer=answers.ModelList),
    "/v1/models/{model}": _Route("get", "One of them.", answer=answers.ModelAnswer, failures=("404",)),
    "/v1/completions": _post("Continue prompts.", CompletionBody, answer=answers.CompletionAnswer),
    "/v1/chat/completions": _post("Answer a conversation.", ChatBody, answer=answers.ChatAnswer),
    "/v1/responses": _post("Answer a conversation.", ResponsesBody, answer=dialect_answers.ResponseAnswer),
    "/v1/messages": _post(
        "Answer a conversation.", MessagesBody, answer=dialect_answers.MessageAnswer, error="MessagesError"
    ),
    "/v1/messages/count_tokens": _post(
        "Tokens of a prompt.", CountTokensBody, answer=dialect_answers.TokenCount, error="MessagesError"
    ),
    "/v1/embeddings": _post("Texts as vectors.", EmbeddingsBody, answer=EmbeddingsAnswer),
    "/v1/adapters": _Route("get", "The adapters: what they are and in which memory.", answer=answers.AdapterList),
    "/v1/adapters/load": _post("Bring it to the device and prove it.", AdapterBody, answer=answers.AdapterShown),
    "/v1/adapters/unload": _post("Take it out of memory.", AdapterBody, answer=answers.AdapterShown),
    "/v1/adapters/pin": _post("Keep it in memory, or let it go again.", PinBody, answer=answers.AdapterShown),
    "/v1/load_lora_adapter": _post("Give an adapter a name, and load it.", vllm.LoadBody, answer=_TEXT),
    "/v1/unload_lora_adapter": _post("Take the name back.", vllm.UnloadBody, answer=_TEXT),
    "/tokenize": _post("Token ids.", vllm.TokenizeTextBody, vllm.TokenizeChatBody, answer=vllm.Tokens),
    "/detokenize": _post("The text of token ids.", vllm.DetokenizeBody, answer=vllm.DetokenizedText),
    "/tokenizer_info": _Route("get", "How prompts are made.", answer=vllm.TokenizerInfo),
    "/version": _Route("get", "graft's version.", answer=vllm.Version),
    "/health": _Route("get", "Whether the process is alive.", answer=answers.Health, failures=("503",)),
    "/ready": _Route("get", "Whether it takes requests.", answer=answers.Readiness, failures=("503",)),
    "/replica": _Route("get", "Its base and what it has at hand, for an ingress.", answer=answers.ReplicaShown),
    "/metrics": _Route("get", "Numbers for Prometheus.", answer=_TEXT),
    "/openapi.json": _Route("get", "This document."),
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
_MESSAGES_ERROR = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
        "request_id": {"type": "string"},
    },
}


def document(base_name: str) -> dict[str, object]:
    """OpenAPI 3.1. `base_name` is an example of a model."""
    sent = {body for route in _ROUTES.values() for body in route.bodies}
    given = {one for route in _ROUTES.values() if (one := route.answer) is not None and issubclass(one, BaseModel)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "graft serve", "version": "1", "description": f"Adapters on {base_name}, one a request."},
        "paths": {path: {route.method: _operation(path, route)} for path, route in _ROUTES.items()},
        "components": {
            "schemas": {
                **_schemas_of(given),
                **_sent_schemas(sent),
                "Error": _ERROR,
                "MessagesError": _MESSAGES_ERROR,
            }
        },
    }


def _schemas_of(models: Collection[type[BaseModel]]) -> dict[str, _Schema]:
    """Name -> JSON schema, of the models and what they hold."""
    ordered = sorted(models, key=lambda model: model.__name__)
    _, made = models_json_schema([(model, "validation") for model in ordered], ref_template=_SCHEMAS + "{model}")
    schemas: dict[str, _Schema] = made["$defs"]
    return schemas


def _operation(path: str, route: _Route) -> dict[str, object]:
    failure = {"description": "What is wrong.", "content": _json({"$ref": _SCHEMAS + route.error})}
    operation: dict[str, object] = {
        "summary": route.summary,
        "operationId": (route.method + path).replace("/", "_").replace("{", "").replace("}", ""),
        "responses": {"200": {"description": "Done.", "content": _answer(route)}}
        | dict.fromkeys(route.failures, failure),
    }
    if route.bodies:
        named: list[dict[str, object]] = [{"$ref": _SCHEMAS + body.__name__} for body in route.bodies]
        content = _json(named[0] if len(named) == 1 else {"anyOf": named})
        operation["requestBody"] = {"required": True, "content": content}
    if "{model}" in path:
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _answer(route: _Route) -> dict[str, object]:
    if route.answer is None:
        return _json({"type": "object"})
    if not issubclass(route.answer, BaseModel):
        return {"text/plain": {"schema": {"type": "string"}}}
    answer = _json({"$ref": _SCHEMAS + route.answer.__name__})
    streams = any("stream" in body.model_fields for body in route.bodies)
    return answer | {"text/event-stream": {}} if streams else answer


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
