"""Keys over HTTP: who may do what, how often, and what it is told."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.request import Request, urlopen

import openai
import pytest
from flask import Flask

from graft.hub.errors import GraftError
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app as create_hub
from graft.server.benchmark.targets import UrlTarget
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.access.gate import guard
from graft.server.http.access.limit_headers import NAMES, moment_text, span_text
from graft.server.http.app import create_app
from graft.server.http.clients import GUESTS, AnswerPlaces
from graft.server.keys import key_file
from graft.server.keys.access import Access
from graft.server.keys.key_changes import remove_keys
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from graft.server.keys.usage import Usage, UsageFile
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.keys.made import bearing, write_keys
from tests.server.live import CHAT_TEMPLATE, OPTIONS, serving

BASE = "test/llama"
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "admin": {"admin": True},
    "limited": {"adapters": ["other", "acme/*"], "base": False},
    "warden": {"admin": True, "adapters": ["other", "acme/*"]},
    "expired": {"admin": True, "expires": datetime(2026, 1, 1, tzinfo=UTC)},
    "slow": {"requests_per_minute": 3},
    "small": {"tokens_per_minute": 100},
    "single": {"concurrency": 1},
    "crowd": {"requests_per_minute": 20, "tokens_per_minute": 155, "concurrency": 5},
    "heavy": {"weight": 3.0},
    "claude": {"requests_per_minute": 4, "tokens_per_minute": 500},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, two adapters' folders, the keys, and where usage goes."""
    top = tmp_path_factory.mktemp("keys")
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    folders = {name: write_folder(top / name, "lora", base, seed) for seed, name in enumerate(("mine", "other"))}
    return top, base, folders, write_keys(top / "keys.toml", KEYS)


@pytest.fixture(scope="module")
def keys(place):
    return place[3]


@pytest.fixture(scope="module")
def live(place):
    top, base, folders, _ = place
    access = Access(Keyring(KeyFile(top / "keys.toml", has_hub=False), None))
    usage = UsageFile(top / "usage.jsonl")
    with serving(base, folders, access=access, usage=usage, adapter_root=top) as running:
        yield running


def ask(live, key: str, model: str = "mine", **more: Any):
    body = {"model": model, "prompt": "ab", "max_tokens": 2, "ignore_eos": True, **more}
    return live.post("/v1/completions", body, bearing(key))


# Who may take which route

TEXT = {"model": "mine", "prompt": "a", "max_tokens": 1}
CHAT = {"model": "mine", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
# Endpoint -> what it needs, whether it names an adapter that "limited" is not for, and a sound body.
ROUTES: dict[str, tuple[str, bool, dict[str, Any] | None]] = {
    "v1.completions": ("key", True, TEXT),
    "v1.chat_completions": ("key", True, CHAT),
    "responses.create_response": ("key", True, {"model": "mine", "input": "a", "max_output_tokens": 1}),
    "messages.create_message": ("key", True, CHAT),
    "messages.count_tokens": ("key", True, {key: CHAT[key] for key in ("model", "messages")}),
    "embeddings.embeddings": ("key", True, {"model": "mine", "input": "a"}),
    "v1.models": ("key", False, None),
    "v1.model": ("key", True, None),
    "v1.adapters": ("key", False, None),
    "vllm.tokenize": ("key", True, {"model": "mine", "prompt": "a"}),
    "vllm.detokenize": ("key", True, {"model": "mine", "tokens": [5]}),
    "vllm.tokenizer_info": ("key", False, None),
    "vllm.server_version": ("key", False, None),
    "v1.load": ("admin", True, {"model": "mine"}),
    "v1.pin": ("admin", True, {"model": "mine", "pinned": False}),
    "v1.unload": ("admin", True, {"model": "mine"}),
    "vllm.load_lora_adapter": ("admin", False, {"lora_name": "given", "lora_path": "PLACE/other"}),
    "vllm.unload_lora_adapter": ("admin", False, {"lora_name": "given"}),
    "status.metrics": ("admin", False, None),
    "status.replica": ("admin", False, None),
    "status.health": ("nothing", False, None),
    "status.ready": ("nothing", False, None),
    "status.document": ("nothing", False, None),
}


def expected(kind: str, need: str, names: bool) -> int:
    if need == "nothing":
        return 200
    if kind in ("none", "wrong", "odd", "expired"):
        return 401
    if kind in ("plain", "limited") and need == "admin":
        return 403
    return 403 if kind == "limited" and names else 200


def test_every_route_with_every_kind_of_key(place):
    """From the application's own routes: a new one without a line above fails, and one without a rule can't be served."""
    top, base, folders, made = place
    shown = {"none": None, "wrong": "sk-graft-wrong", "odd": "\xe9\xff;'\" \t--", **made}
    with Engine(base, folders, None, OPTIONS) as engine:
        access = Access(Keyring(KeyFile(top / "keys.toml", has_hub=False), None))
        app = create_app(EngineClient(engine), open_access=lambda: access, adapter_root=top)
        asked = app.test_client()
        rules = {rule.endpoint: rule for rule in app.url_map.iter_rules()}
        assert rules.keys() == ROUTES.keys()
        for endpoint, (need, names, body) in ROUTES.items():
            path = rules[endpoint].rule.replace("<path:name>", "mine")
            sent = json.loads(json.dumps(body).replace("PLACE", str(top)))
            method = "GET" if body is None else "POST"
            assert method in rules[endpoint].methods
            for kind in ("none", "wrong", "odd", "expired", "limited", "plain", "admin"):
                headers = {} if shown[kind] is None else {"Authorization": f"Bearer {shown[kind]}"}
                reply = asked.open(path, method=method, json=sent, headers=headers)
                wanted = expected(kind, need, names)
                assert reply.status_code == wanted, (endpoint, kind, reply.get_data(as_text=True))
                if wanted == 401:
                    code = "invalid_api_key" if not path.startswith("/v1/messages") else None
                    assert reply.json["error"].get("code") == code and reply.headers["WWW-Authenticate"] == "Bearer"
            for other in rules[endpoint].methods - {method}:  # HEAD, OPTIONS
                assert asked.open(path, method=other).status_code == expected("none", need, names)


def test_an_admin_gives_and_takes_the_names_alone_that_the_key_is_for(live, keys, place):
    def move(what: str, key: str, name: str):
        given = {"lora_name": name, "lora_path": str(place[0] / "other")}
        return live.post(f"/v1/{what}_lora_adapter", given, bearing(keys[key]))

    assert move("load", "admin", "given").status == move("load", "warden", "acme/given").status == 200
    for what, name in (("load", "new"), ("load", BASE), ("unload", "given"), ("unload", "absent")):
        error = move(what, "warden", name).error
        assert (error["code"], error["param"]) == ("permission_denied", "lora_name")
    assert ask(live, keys["plain"], "given").status == 200 and ask(live, keys["plain"], "new").status == 404
    assert move("unload", "admin", "given").status == move("unload", "warden", "acme/given").status == 200


def test_a_route_without_a_rule_is_not_served():
    app = Flask("app", static_folder=None)
    app.add_url_rule("/health", "status.health", lambda: "")
    guard(app)
    app.add_url_rule("/new", "v1.new", lambda: "")
    with pytest.raises(LookupError, match=r"v1\.new"):
        guard(app)


def test_both_ways_to_send_a_key_and_each_dialects_errors(live, keys):
    chat = {"model": "mine", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    for headers in (
        {"x-api-key": keys["plain"], "anthropic-version": "2023-06-01"},
        {"Authorization": f"bearer  {keys['plain']} "},
        {"Authorization": "Basic dTpw", "x-api-key": keys["plain"]},  # the login of a proxy
    ):
        assert live.post("/v1/messages", chat, headers).status == 200
        assert live.post("/v1/chat/completions", chat, headers).status == 200
    missing = live.post("/v1/messages", chat)
    assert missing.status == 401 and missing.json["error"]["type"] == "authentication_error"
    refused = live.post("/v1/messages", chat, {"x-api-key": keys["limited"]})
    assert refused.status == 403 and refused.json["error"]["type"] == "permission_error"
    error = live.get("/v1/models").error
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert ask(live, keys["limited"]).error["param"] == "model"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.PermissionDeniedError):
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=keys["limited"], max_retries=0)
        client.completions.create(model="mine", prompt="a")
    assert (
        live.post("/v1/completions", b"x" * 1000, {"x-api-key": "x" * 5000}).status == 401
    )  # before the body is looked at


ODD_KEYS = [
    b"", b" ", b"\t", b"caf\xc3\xa9", b"\xff\xfe\x80", b"two words", b"x" * 10_000, b"\x00", b"a\x00b", b"a\r\n folded", b"a\nb", b"a\rb",
    b"%00%0a", b"'\";--\\", b"Bearer Bearer", b"x" * 400_000,
]  # fmt: skip


@pytest.mark.parametrize("key", ODD_KEYS, ids=lambda key: repr(key[:20]))
def test_keys_with_odd_characters_are_refused_in_words(live, keys, key, caplog):
    """By the server itself, or as the wrong keys that they are; never by a failure. Beside a right one they do no harm."""
    for head in (b"Authorization: Bearer ", b"Authorization: ", b"x-api-key: "):
        for asked, kind in ((b"GET /v1/models", "invalid_api_key"), (b"POST /v1/messages", "authentication_error")):
            sent = asked + b" HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n" + head + key + b"\r\n\r\n"
            with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
                try:
                    connection.sendall(sent)
                    said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
                except ConnectionError:  # hung up on in the midst of what is too long
                    assert len(key) > 100_000
                    continue
            status = int(said.split()[1])
            assert status in (400, 401, 431), said
            if status == 401:
                error = json.loads(said.partition(b"\r\n\r\n")[2])["error"]
                assert kind in (error.get("code"), error["type"])
    assert "Traceback" not in caplog.text and live.send(request(live, "/v1/models", keys["plain"])).status == 200


def test_lists_show_what_a_key_is_for_and_errors_tell_no_other_names(live, keys):
    def listed(key: str) -> list[str]:
        by_models = [entry["id"] for entry in live.send(request(live, "/v1/models", key)).json["data"]]
        by_adapters = [entry["id"] for entry in live.send(request(live, "/v1/adapters", key)).json["data"]]
        assert [name for name in by_models if name != BASE] == by_adapters
        return by_models

    assert listed(keys["plain"]) == [BASE, "mine", "other"]
    assert listed(keys["limited"]) == ["other"]
    for name in (BASE, "mine", "absent"):
        assert ask(live, keys["limited"], name).status == 403
    assert ask(live, keys["limited"], "other").status == 200
    unknown = ask(live, keys["limited"], "acme/none")
    assert unknown.status == 404 and "mine" not in unknown.error["message"]
    assert "mine" in ask(live, keys["plain"], "absent").error["message"]


def request(live, path: str, key: str) -> Request:
    return Request(live.url + path, headers=bearing(key))


def test_a_hubs_playground_and_the_benchmark_show_their_keys(live, keys, tmp_path):
    asked = {"model": "mine", "prompt": "ab", "max_tokens": 2}
    for key, says in ((keys["plain"], "[DONE]"), (None, "This server takes keys")):
        hub = create_hub(Registry(tmp_path / "registry.db"), inference_url=live.url, inference_key=key).test_client()
        assert says in hub.post("/playground/stream", json=asked).text
    with pytest.raises(GraftError, match="answered 401"):
        UrlTarget(live.url).load("mine")
    UrlTarget(live.url, keys["admin"]).load("mine")


# Limits


def test_headers_tell_how_a_key_stands_and_429_when_to_come_again(live, keys):
    first, second, third, over = (ask(live, keys["slow"]) for _ in range(4))
    assert [reply.status for reply in (first, second, third, over)] == [200, 200, 200, 429]
    told = [limit(reply, "x-ratelimit-remaining-requests") for reply in (first, second, third, over)]
    assert told == ["2", "1", "0", "0"] and limit(first, "x-ratelimit-limit-requests") == "3"
    assert limit(first, "x-ratelimit-reset-requests").endswith("s")
    assert limit(first, "x-ratelimit-limit-tokens") is None
    assert 1 <= int(over.headers["Retry-After"]) <= 61
    assert (over.error["code"], over.error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert live.send(request(live, "/v1/models", keys["slow"])).status == 200  # lists are not counted
    assert limit(ask(live, keys["plain"]), "x-ratelimit-limit-requests") is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0ms"), (0.45, "450ms"), (6, "6s"), (1.25, "1.2s"), (60, "1m0s"), (61.5, "1m1.5s")]
)
def test_spans_are_written_as_openai_does(seconds, text):
    assert span_text(seconds) == text


def test_a_moment_is_written_by_rfc_3339_and_never_too_early():
    before = datetime.now(UTC)
    for seconds in (0.0, 0.2, 59.9):
        told = datetime.strptime(moment_text(seconds), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        assert before + timedelta(seconds=seconds) <= told <= datetime.now(UTC) + timedelta(seconds=seconds + 1)


def test_anthropics_routes_tell_of_the_same_limits_by_anthropics_headers(live, keys):
    """Whole, streamed, counted and refused; of the dialects each has its own headers only."""

    def told(reply) -> dict[str, str]:
        return {name: value for name in NAMES if (value := limit(reply, name)) is not None}

    def post(path: str = "/v1/messages", **more: Any):
        return live.post(path, CHAT | more, {"x-api-key": keys["claude"], "anthropic-version": "2023-06-01"})

    counting = live.post("/v1/messages/count_tokens", ROUTES["messages.count_tokens"][2], {"x-api-key": keys["claude"]})
    whole, stream = post(), post(stream=True)
    openai_s = ask(live, keys["claude"])
    over = post()
    anthropics = {name for name in NAMES if name.startswith("anthropic-ratelimit-")}
    for reply, left in ((counting, 3), (whole, 2), (stream, 1), (over, 0)):
        headers = told(reply)
        assert headers.keys() == anthropics and len(anthropics) == 6
        assert headers["anthropic-ratelimit-requests-limit"] == "4"
        assert headers["anthropic-ratelimit-requests-remaining"] == str(left)
        assert headers["anthropic-ratelimit-tokens-limit"] == "500"
        reset = datetime.fromisoformat(headers["anthropic-ratelimit-requests-reset"])
        assert 0 < (reset - datetime.now(UTC)).total_seconds() <= 62
    assert int(told(over)["anthropic-ratelimit-tokens-remaining"]) < int(
        told(whole)["anthropic-ratelimit-tokens-limit"]
    )
    assert told(openai_s).keys() == set(NAMES) - anthropics
    assert [reply.status for reply in (counting, whole, stream, openai_s, over)] == [200, 200, 200, 200, 429]
    assert over.json["type"] == "error" and over.json["error"]["type"] == "rate_limit_error"
    assert 1 <= int(limit(over, "retry-after")) <= 61 and over.json["request_id"] == limit(over, "request-id")


def test_who_finds_no_place_is_told_how_the_key_stands_and_counts_nothing(place):
    top, base, folders, made = place
    places, others = AnswerPlaces(0), [f"other {number}" for number in range(GUESTS)]
    with Engine(base, folders, None, OPTIONS) as engine:
        access = Access(Keyring(KeyFile(top / "keys.toml", has_hub=False), None))
        asked = create_app(EngineClient(engine), places, open_access=lambda: access).test_client()

        def told(key: str, path: str, name: str) -> tuple[int, str | None]:
            reply = asked.post(path, json=CHAT, headers=bearing(made[key]))
            return reply.status_code, reply.headers.get(name)

        assert all(map(places.enter, others))
        for _ in range(5):
            assert told("slow", "/v1/chat/completions", "x-ratelimit-remaining-requests") == (429, "3")
            assert told("claude", "/v1/messages", "anthropic-ratelimit-tokens-remaining") == (429, "500")
            assert told("plain", "/v1/chat/completions", "x-ratelimit-limit-requests") == (429, None)
        places.leave(others[0])
        assert told("slow", "/v1/chat/completions", "x-ratelimit-remaining-requests") == (200, "2")


def limit(reply, name: str) -> str | None:
    """A header, in whichever case the WSGI server writes it."""
    return {key.lower(): value for key, value in reply.headers.items()}.get(name)


def tokens_left(reply) -> int:
    return int(limit(reply, "x-ratelimit-remaining-tokens"))


def test_tokens_are_counted_as_used_and_what_was_set_aside_is_given_back(live, keys):
    used = 0
    for body in ({}, {"stop": ["\x00"]}, {"n": 2, "stream": True}, {"prompt": ["ab", "abcd"]}, {"echo": True}):
        prompts, n = len("".join(body.get("prompt", ["ab"]))), body.get("n", 1) * len(body.get("prompt", ["ab"]))
        reply = ask(live, keys["small"], **body)
        assert tokens_left(reply) == 100 - used - prompts - 2 * n  # all that it may use, as long as it is not known
        used += prompts + 2 * n
    assert live.post("/v1/embeddings", {"model": BASE, "input": ["abc"]}, bearing(keys["small"])).status == 200
    used += 3
    stopped = ask(live, keys["small"], max_tokens=40, allowed_token_ids=[70], stop_token_ids=[70])
    assert stopped.json["usage"]["completion_tokens"] == 1
    used += 3
    reply = ask(live, keys["small"], max_tokens=1)
    assert tokens_left(reply) == 100 - used - 3
    used += 3
    refused = ask(live, keys["small"], max_tokens=100 - used)
    assert refused.status == 429 and "100 tokens a minute" in refused.error["message"]
    never = ask(live, keys["small"], max_tokens=99)
    assert never.status == 400 and never.error["code"] == "above_rate_limit" and "101 tokens" in never.error["message"]
    assert ask(live, keys["small"], max_tokens=98 - used).status == 200


def test_thirty_two_threads_never_pass_a_limit(live, keys):
    def one(number: int) -> tuple[int, int]:
        reply = ask(live, keys["crowd"], max_tokens=8, stream=number % 2 == 0)
        tokens = 10 if reply.status == 200 else 0
        return reply.status, tokens

    with ThreadPoolExecutor(32) as pool:
        told = list(pool.map(one, range(96)))
    assert {status for status, _ in told} <= {200, 429}
    assert 1 <= sum(status == 200 for status, _ in told) <= 15
    assert sum(tokens for _, tokens in told) <= 155


def test_a_key_has_its_weight_in_the_engine_whichever_address_it_comes_from(live, keys, monkeypatch):
    asked, submit = [], live.engine.submit
    monkeypatch.setattr(live.engine, "submit", lambda one, sink=None: asked.append(one) or submit(one, sink))
    assert ask(live, keys["heavy"]).status == ask(live, keys["plain"]).status == 200
    assert live.post("/v1/embeddings", {"model": "mine", "input": "a"}, bearing(keys["heavy"])).status == 200
    heavy, plain = ("key heavy", 3.0), ("key plain", 1.0)
    assert [(one.client, one.weight) for one in asked] == [heavy, plain, heavy]


@contextmanager
def slow_stream(live, key: str, prompt: str, request_id: str = "") -> Iterator[socket.socket]:
    """The connection of a long stream that has begun; steps are slow meanwhile, and the client hangs up before the end."""
    body = json.dumps(
        {"model": "mine", "prompt": prompt, "max_tokens": 200, "ignore_eos": True, "stream": True}
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nX-Request-Id: {request_id}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    step = live.engine.runner.step

    def slowly(*given):
        time.sleep(0.02)
        return step(*given)

    live.engine.runner.step = slowly
    try:
        with socket.create_connection(("127.0.0.1", live.port)) as stream:
            stream.sendall(head.encode() + body)
            yield stream
    finally:
        live.engine.runner.step = step


def read_events(stream: socket.socket, count: int) -> None:
    got = b""
    while got.count(b"data:") < count:
        piece = stream.recv(4096)
        assert piece, got
        got += piece


def test_one_at_once_and_the_place_comes_back_when_a_client_hangs_up(live, keys):
    with slow_stream(live, keys["single"], "ab") as stream:
        read_events(stream, 1)
        busy = ask(live, keys["single"])
        assert busy.status == 429 and "1 requests at once" in busy.error["message"]
        stream.close()
        until = time.monotonic() + 20
        while ask(live, keys["single"], max_tokens=1).status == 429 and time.monotonic() < until:
            time.sleep(0.1)
        assert ask(live, keys["single"], max_tokens=1).status == 200


# What was used


def lines(place) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place[0] / "usage.jsonl").read_text().splitlines()]


def usage_of(place, id: str) -> dict[str, Any]:
    """Its line, which is written when the answer has been sent."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if found := [line for line in lines(place) if line["request_id"] == id]:
            [line] = found
            return line
        time.sleep(0.02)
    raise AssertionError(f"no line for {id}")


def test_usage_is_written_by_key_and_adapter_and_is_what_the_client_is_told(live, keys, place):
    for route, body in (
        ("/v1/completions", {"model": "other", "prompt": ["ab", "abc"], "max_tokens": 5, "n": 2, "ignore_eos": True}),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 3}),
        ("/v1/messages", {**CHAT, "max_tokens": 3}),
        ("/v1/embeddings", {"model": BASE, "input": ["abc", "d"]}),
    ):
        reply = live.post(route, body, {**bearing(keys["heavy"]), "X-Request-Id": f"used{route}"})
        told, line = reply.json["usage"], usage_of(place, f"used{route}")
        prompt = told.get("prompt_tokens", told.get("input_tokens", 0) + told.get("cache_read_input_tokens", 0))
        assert line["prompt_tokens"] == prompt
        assert line["completion_tokens"] == told.get("completion_tokens", told.get("output_tokens", 0))
        assert (line["key"], line["route"], line["model"], line["cut_off"]) == ("heavy", route, body["model"], False)
        assert line["adapter"] == (None if body["model"] == BASE else body["model"]) and bool(line["digest"]) == (
            body["model"] != BASE
        )
    text = live.send(request(live, "/metrics", keys["admin"])).data.decode()
    assert 'graft_key_tokens_total{adapter="other",key="heavy",kind="completion"} 20.0' in text
    assert 'graft_key_requests_total{adapter="base",end="whole",key="heavy"} 1.0' in text
    before = len(lines(place))
    assert ask(live, keys["heavy"], max_tokens=0, prompt="").status in (200, 400)
    assert ask(live, keys["heavy"], "absent").status == 404
    assert len(lines(place)) <= before + 1  # nothing of what never began


@pytest.mark.parametrize("stream", [False, True])
def test_the_line_of_an_answer_is_there_when_its_last_byte_is(live, keys, place, monkeypatch, stream):
    """Whoever kills the server then loses nothing, though the disk be slow."""
    at_once = UsageFile.write

    def slowly(self: UsageFile, usage: Usage) -> None:
        time.sleep(0.2)
        at_once(self, usage)

    monkeypatch.setattr(UsageFile, "write", slowly)
    body = {**CHAT, "max_tokens": 2, "ignore_eos": True, "stream": stream}
    headers = {**bearing(keys["heavy"]), "X-Request-Id": f"counted-{stream}", "Content-Type": "application/json"}
    asked = Request(f"{live.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(asked, timeout=60) as reply:
        while stream and reply.readline() != b"data: [DONE]\n":  # with which clients are content
            pass
        assert stream or reply.read()
        found = lines(place)
    [line] = [line for line in found if line["request_id"] == f"counted-{stream}"]
    assert line["completion_tokens"] == 2 and not line["cut_off"]


def test_who_waits_for_a_slow_disk_holds_no_other_stream_up(live, keys, place, monkeypatch):
    held, at_once = threading.Event(), UsageFile.write

    def write(self: UsageFile, usage: Usage) -> None:
        assert usage.request_id != "held" or held.wait(60)
        at_once(self, usage)

    monkeypatch.setattr(UsageFile, "write", write)
    body = {**CHAT, "max_tokens": 2, "ignore_eos": True, "stream": True}

    def stream(id: str) -> str:
        return live.post("/v1/chat/completions", body, {**bearing(keys["heavy"]), "X-Request-Id": id}).events[-1]

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stream, "held")
        try:
            assert stream("free") == "[DONE]" and not waiting.done()
        finally:
            held.set()
        assert waiting.result(60) == "[DONE]"


def test_a_line_of_the_log_names_the_key_and_what_was_asked_for_of_refusals_too(live, keys, caplog):
    caplog.set_level(logging.INFO, logger="graft.requests")

    def told() -> list[dict[str, Any]]:
        fields = [vars(one)["fields"] for one in caplog.records if one.name == "graft.requests"]
        return sorted((one for one in fields if one["id"].startswith("told-")), key=lambda one: one["id"])

    assert live.post("/v1/completions", TEXT, {**bearing(keys["limited"]), "X-Request-Id": "told-1"}).status == 403
    assert live.post("/v1/completions", TEXT, {"X-Request-Id": "told-2"}).status == 401
    until = time.monotonic() + 20  # a line is written when the answer has been sent
    while len(told()) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [(one["key"], one["model"], one["error"]) for one in told()] == [
        ("limited", "mine", "permission_denied"),
        ("", "", "invalid_api_key"),
    ]
    assert all(key not in caplog.text for key in keys.values())


def test_a_stream_that_is_cut_off_counts_what_was_made_of_it(live, keys, place):
    with slow_stream(live, keys["heavy"], "abc", "cut") as stream:
        read_events(stream, 4)
        stream.close()
        line = usage_of(place, "cut")
    assert line["cut_off"] and line["prompt_tokens"] == 3
    assert 3 <= line["completion_tokens"] < 200


# The file, while it is served


def test_the_file_may_change_while_requests_run_and_a_broken_one_is_told(place, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(key_file, "LOOK_EVERY_S", 0.0)
    _, base, folders, _ = place
    path = tmp_path / "keys.toml"
    first = write_keys(path, {"first": {}})["first"]
    with Engine(base, folders, None, OPTIONS) as engine:
        access = Access(Keyring(KeyFile(path, has_hub=False), None))
        asked = create_app(EngineClient(engine), open_access=lambda: access).test_client()
        done, seen = threading.Event(), []

        def status(key: str) -> int:
            return asked.post("/v1/completions", json={**TEXT, "max_tokens": 1}, headers=bearing(key)).status_code

        def keep_asking() -> None:
            while not done.is_set():
                seen.append(status(first))

        threads = [threading.Thread(target=keep_asking) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            text = path.read_text()
            for number in range(12):
                path.write_text(text if number % 2 else text[:-10])  # broken, and mended
                time.sleep(0.03)
            path.write_text("[[key]]\n")
            until = time.monotonic() + 20  # another thread may be looking at what was there before
            while "keys" not in asked.get("/ready").json and time.monotonic() < until:
                time.sleep(0.01)
            assert asked.get("/ready").json == {"status": "ready", "model": BASE, "keys": "outdated"}
            assert status(first) == 200
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert set(seen) == {200} and "go on to hold" in caplog.text
        second = write_keys(path, {"second": {}})["second"]
        assert status(second) == 200 and status(first) == 401
        assert "keys" not in asked.get("/ready").json
        path.unlink()
        assert asked.get("/ready").json["keys"] == "outdated" and status(second) == 200
        third = write_keys(path, {"second": {}, "third": {}})["third"]
        remove_keys(path, {"second"})
        assert status(third) == 200 and status(second) == 401
        assert "keys" not in asked.get("/ready").json
