"""Every answer of a live server is one that /openapi.json describes: each event of each stream, and each kind of failure.

All tests that ask one hold it to that (live.py); here are those that make each route give what it can.
"""

import json

import pytest

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.app import create_app
from graft.server.keys.access import Access
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from graft.server.operations.drain import Drain, Draining
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.described import DOCUMENT, events_of, require_described
from tests.server.http.learned import ASK, BASE, TOOLS
from tests.server.http.test_keys import ROUTES
from tests.server.keys.made import bearing, write_keys
from tests.server.live import CHAT_TEMPLATE, OPTIONS, serving

NOTHING: dict[str, str] = {}
KEYS = {
    "admin": {"admin": True},
    "plain": {},
    "other": {"adapters": ["other"], "base": False},
    "spent": {"requests_per_minute": 1, "tokens_per_minute": 1},
}
PATHS = DOCUMENT["paths"]
CHAT = {"model": BASE, "messages": ASK, "temperature": 0, "stream": True}
FUNCTION = TOOLS[0]["function"]
CUSTOM = {"name": "add", "input_schema": FUNCTION["parameters"]}
FULL = {"include_usage": True, "continuous_usage_stats": True}
# Route -> requests that make a stream say all that it can, but that it failed.
STREAMS = {
    "/v1/completions": [
        {"model": BASE, "prompt": ["a", "b"], "n": 2, "logprobs": 2, "echo": True, "max_tokens": 3, "stream": True},
        {"model": BASE, "prompt": "a", "max_tokens": 3, "stream": True, "stream_options": FULL},
    ],
    "/v1/chat/completions": [
        CHAT | {"logprobs": True, "top_logprobs": 2, "stream_options": FULL},
        CHAT | {"tools": TOOLS, "stream_options": {"include_usage": True}},
        CHAT | {"max_tokens": 2, "n": 2},
    ],
    "/v1/responses": [
        {"model": BASE, "input": "sum", "temperature": 0, "stream": True},
        {"model": BASE, "input": "sum", "temperature": 0, "stream": True, "tools": [{"type": "function", **FUNCTION}]},
        {"model": BASE, "input": "sum", "temperature": 0, "stream": True, "max_output_tokens": 4},
    ],
    "/v1/messages": [
        CHAT | {"max_tokens": 140},
        CHAT | {"max_tokens": 140, "tools": [CUSTOM]},
        CHAT | {"max_tokens": 140, "stop_sequences": ["tool"]},
    ],
}


@pytest.fixture(scope="module")
def live(learned, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", learned)
    with serving(learned, {"lora": folder}) as running:
        yield running


def kinds(data: bytes) -> set[str]:
    """How the events are called, where they have names."""
    return {event.get("event", "") for event in events_of(data)}


def described_kinds(path: str) -> set[str]:
    """How those of a route may be called: as their types."""
    data = PATHS[path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]["properties"]["data"]
    name = data.get("anyOf", [data])[0]["contentSchema"]["$ref"].rsplit("/", 1)[1]
    return set(DOCUMENT["components"]["schemas"][name].get("discriminator", {}).get("mapping", {""}))


@pytest.mark.parametrize("path", STREAMS)
def test_each_event_of_each_stream(live, breaking_soon, path) -> None:
    """`post` fails for one that does not fit. All that are described come."""
    came = set().union(*(kinds(live.post(path, body).data) for body in STREAMS[path]))
    with breaking_soon(live):
        body = STREAMS[path][0] | ({"max_tokens": 60} if path == "/v1/completions" else {})
        failed = live.post(path, body).data
    assert b"internal_error" in failed or b"api_error" in failed, failed[-300:]
    assert came | kinds(failed) == described_kinds(path) and live.idle()


def test_every_stream_is_among_them() -> None:
    streaming = {path for path, methods in PATHS.items() if "text/event-stream" in json.dumps(methods)}
    assert streaming == STREAMS.keys()


@pytest.mark.parametrize("path", STREAMS)
def test_what_is_not_described_is_found(live, path) -> None:
    reply = live.post(path, STREAMS[path][-1])
    for data in (reply.data.replace(b'"index"', b'"place"'), reply.data.replace(b'data: {"', b'data: {"new": 1, "')):
        changed = data if data != reply.data else data.replace(b'"output_index"', b'"place"')
        with pytest.raises(AssertionError):
            require_described("POST", path, reply.status, reply.headers, changed)
    with pytest.raises(AssertionError):
        require_described("POST", path, reply.status, reply.headers | {"X-New": "1"}, reply.data)
    with pytest.raises(AssertionError):
        require_described("POST", path, 302, reply.headers, reply.data)


# How a route refuses


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """Applications that ask for keys, one that is about to end besides, and headers that show a key, by its name."""
    top = tmp_path_factory.mktemp("keyed")
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    made = {name: bearing(key) for name, key in write_keys(top / "keys.toml", KEYS).items()}
    access = Access(Keyring(KeyFile(top / "keys.toml", has_hub=False), None))
    drain = Drain()
    drain.begin(0, Draining(lambda: 0, lambda: None), lambda: None)
    with Engine(base, {"mine": write_folder(top / "mine", "lora", base)}, None, OPTIONS) as engine:
        apps = [
            create_app(EngineClient(engine), open_access=lambda: access, adapter_root=top, drain=one)
            for one in (None, drain)
        ]
        yield *(app.test_client() for app in apps), made


@pytest.mark.parametrize("endpoint", ROUTES)
def test_each_way_a_route_refuses(keyed, endpoint) -> None:
    client, ending, shown = keyed
    [rule] = [rule for rule in client.application.url_map.iter_rules() if rule.endpoint == endpoint]
    path, (need, names_model, body) = rule.rule.replace("<path:name>", "mine"), ROUTES[endpoint]
    method = "GET" if body is None else "POST"

    def ask(of=client, key="admin", headers=NOTHING, **sent):
        sent = sent or ({} if body is None else {"json": body})
        reply = of.open(path, method=method, headers=shown.get(key, {}) | headers, **sent)
        require_described(method, path, reply.status_code, dict(reply.headers), reply.data)
        return reply.status_code

    keyless = need == "nothing"
    assert ask(key="none") == ask(headers=bearing("wrong")) == (200 if keyless else 401)
    assert ask(key="plain") == (403 if need == "admin" else 200)
    assert ask(key="other") == (200 if keyless or (need == "key" and not names_model) else 403)
    assert ask(headers={"X-Request-Timeout": "never"}) == 400
    assert ask(ending) == (200 if endpoint.startswith("status.") and endpoint != "status.ready" else 503)
    if body is not None:
        assert (ask(data=b"{"), ask(data=b"{}", headers={"Content-Type": "text/plain"})) == (400, 415)
        assert ask(json=dict.fromkeys(body)) == 400
        assert ask(json=body | {"model": "absent", "lora_name": "absent", "lora_path": "/absent"}) in (400, 404)
    if names_model and need == "key" and body is not None:
        ask(key="spent")
        assert ask(key="spent") == 429
