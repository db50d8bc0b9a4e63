"""/openapi.json is a valid description of all there is, and the server keeps to it."""

import pytest
import schemathesis
from flask import Flask
from jsonschema_rs import validator_for

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.access import header_names
from graft.server.http.access.limit_headers import NAMES
from graft.server.http.access.routes import NEEDS, Need
from graft.server.http.app import create_app
from graft.server.http.openapi import document as openapi
from graft.server.http.openapi.routes import ROUTES
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, OPTIONS


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    base = tiny_base("llama")
    base.tokenizer.chat_template = (
        CHAT_TEMPLATE + "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
    )
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", base)
    with Engine(base, {"lora": folder}, None, OPTIONS) as engine:
        yield create_app(EngineClient(engine))


def test_it_is_valid(app: Flask):
    schemathesis.openapi.from_wsgi("/openapi.json", app).validate()


def test_every_route_is_described_with_what_it_takes(app: Flask):
    routes = {rule.rule.replace("<path:name>", "{model}"): NEEDS[rule.endpoint] for rule in app.url_map.iter_rules()}
    assert routes == {path: route.need for path, route in ROUTES.items()}
    document = openapi.document("base")
    schemes = document["components"]["securitySchemes"]
    assert schemes["bearer"]["scheme"] == "bearer" and schemes["key"]["name"] == "x-api-key"
    for path, methods in document["paths"].items():
        [operation] = methods.values()
        keyed = [{"bearer": []}, {"key": []}, {}] if routes[path] is not Need.NOTHING else None
        assert operation.get("security") == keyed, path
        assert {"200", "4XX", "503", "5XX"} <= operation["responses"].keys(), path
        assert ({"401", "403"} <= operation["responses"].keys()) == (keyed is not None), path
        assert ("429" in operation["responses"]) == ("requestBody" in operation or "{model}" in path), path


def test_every_header_of_our_own_is_described():
    """But Allow, which no route's own answers have."""
    headers = openapi.document("base")["components"]["headers"]
    assert headers.keys() == {*header_names.OWN, *NAMES} - {header_names.ALLOW}


def test_an_item_of_a_conversation_is_one_of_those_that_are_read():
    document = openapi.document("base")
    body = {"$ref": "#/components/schemas/ResponsesBody", "components": document["components"]}
    check = validator_for(body)
    message = {"role": "user", "content": [{"type": "input_text", "text": "a"}]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "3"}
    thought = {"type": "reasoning", "summary": []}
    assert check.is_valid({"model": "a", "input": [message, thought, call, result]})
    image = {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}
    for wrong in ({}, {"type": "item_reference", "id": "a"}, {"type": "function_call"}, image):
        assert not check.is_valid({"model": "a", "input": [wrong]}), wrong


def test_the_bodies_are_valid_json_schema():
    document = openapi.document("base")
    schemas = document["components"]["schemas"]
    bodies = {
        "CompletionBody": (
            {"model": "a", "prompt": [[1, 2]], "stop": None, "user": "me"},
            {"model": "a", "prompt": []},
        ),
        "ChatBody": ({"model": "a", "messages": [{"role": "user", "content": "a"}]}, {"model": "a", "messages": []}),
        "EmbeddingsBody": (
            {"model": "a", "input": "b", "truncate_prompt_tokens": None, "user": "me"},
            {"model": "a", "input": "b", "truncate_prompt_tokens": 5},
        ),
        "PinBody": ({"model": "a", "pinned": False}, {"model": "a", "pinned": "yes"}),
    }
    for name, (good, bad) in bodies.items():
        check = validator_for({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})
        assert check.is_valid(good) and not check.is_valid(bad)


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
FLAT = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CUSTOM = {"name": "f", "input_schema": {"type": "object"}}
MESSAGES = [{"role": "user", "content": "Hi"}]
REQUESTS = [
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "prompt_logprobs": 1, "echo": True}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 0}),
    ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1, "prompt_logprobs": 0}),
    ("/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 3}),
    ("/v1/responses", {"input": MESSAGES, "tools": [FLAT], "tool_choice": "required"}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 3}),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 99, "tools": [CUSTOM], "tool_choice": {"type": "any"}}),
    ("/v1/messages/count_tokens", {"messages": MESSAGES}),
    ("/v1/embeddings", {"input": ["a", "b"], "dimensions": 3}),
    ("/v1/embeddings", {"input": [5, 6], "encoding_format": "base64", "pooling": "last"}),
    ("/v1/adapters/load", {}),
    ("/v1/adapters/pin", {"pinned": False}),
    ("/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("/tokenize", {"messages": MESSAGES}),
    ("/detokenize", {"tokens": [5, 6]}),
]
READ = [
    "/v1/models",
    "/v1/models/test/llama",
    "/v1/models/lora",
    "/v1/adapters",
    "/tokenizer_info",
    "/version",
    "/health",
    "/ready",
]


@pytest.mark.parametrize(("path", "body"), [*REQUESTS, *((path, None) for path in READ)])
def test_answers_are_what_the_description_says(app, path, body):
    client, document = app.test_client(), openapi.document("base")
    short = {"max_tokens": 3} if path.endswith("completions") else {}
    reply = client.get(path) if body is None else client.post(path, json={"model": "lora"} | short | body)
    described = path if path in document["paths"] else "/v1/models/{model}"
    operation = next(iter(document["paths"][described].values()))
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert "$ref" in schema
    check = validator_for({**schema, "components": document["components"]})
    assert reply.status_code == 200 and list(map(str, check.iter_errors(reply.json))) == [], reply.json
