"""What goes wrong costs its own request a clear error, in one shape, and nobody else anything."""

import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, OPTIONS, serving

BASE = "test/llama"
GOOD = {"model": BASE, "prompt": "abc", "max_tokens": 2}
LONG = {"model": BASE, "prompt": "abc", "max_tokens": 240, "ignore_eos": True, "temperature": 0}
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def base():
    made = tiny_base("llama")
    made.tokenizer.chat_template = CHAT_TEMPLATE
    return made


def broken_folders(base, top):
    """name -> folder that can't be served."""
    wrong_base = write_folder(top / "wrong-base", "lora", tiny_base("llama", seed=3))
    cut = write_folder(top / "cut", "lora", base)
    weights = cut / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    pickle = write_folder(top / "pickle", "ia3", base)
    (pickle / "adapter_model.safetensors").rename(pickle / "adapter_model.bin")
    unknown = write_folder(top / "unknown", "lora", base)
    config = json.loads((unknown / "adapter_config.json").read_text())
    (unknown / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "OFT"}))
    empty = top / "empty"
    empty.mkdir()
    return {"wrong-base": wrong_base, "cut": cut, "pickle": pickle, "unknown": unknown, "empty": empty}


@pytest.fixture(scope="module")
def live(base, tmp_path_factory):
    top = tmp_path_factory.mktemp("adapters")
    good = {kind: write_folder(top / kind, kind, base) for kind in ("lora", "prefix", "parallel")}
    with serving(base, good | broken_folders(base, top)) as running:
        yield running


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 300}, "max_tokens"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"seed": 1 << 70}, "seed"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"3\n": 1}}, "logit_bias"),
        ({"suffix": "x"}, "suffix"),
        ({"temprature": 1}, "temprature"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [5, 300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": "x" * 300}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["x"] * 1025}, "prompt"),
        ({"model": 5}, "model"),
        ({"model": "/" * 301}, "model"),
    ],
)
def test_a_bad_field_is_named(live, change, param):
    reply = live.post("/v1/completions", GOOD | change)
    assert reply.status == 400
    assert reply.error["param"] == param and reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
    ],
)
def test_a_bad_field_of_a_chat_is_named(live, change, param):
    reply = live.post("/v1/chat/completions", {"model": BASE, "messages": HI} | change)
    assert reply.status == 400 and reply.error["param"] == param


def test_fields_without_effect_and_nulls_are_taken(live):
    harmless = {"user": "me", "presence_penalty": 0, "logit_bias": {}, "best_of": 1, "stop": None, "suffix": None}
    assert live.post("/v1/completions", GOOD | harmless).status == 200


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'"text"'])
def test_a_body_that_is_no_object_is_refused(live, data):
    assert live.post("/v1/completions", data).status == 400
    assert live.post("/v1/completions", data).error["code"] == "invalid_request"


def test_other_routes_methods_types_and_sizes(live):
    assert live.get("/v1/nothing").status == 404 and live.get("/v1/nothing").error["type"] == "invalid_request_error"
    assert live.get("/v1/completions").status == 405 and "POST" in live.get("/v1/completions").error["message"]
    reply = live.post("/v1/completions", GOOD, {"Content-Type": "text/plain"})
    assert reply.status == 415 and "application/json" in reply.error["message"]
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(33 << 20))
    connection.endheaders()
    connection.send(bytes(33 << 20))
    response = connection.getresponse()
    assert response.status == 413 and "error" in json.loads(response.read())
    connection.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "model",
    "prompt",
    "messages",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "stream",
    "echo",
    "logprobs",
    "top_logprobs",
    "stop_token_ids",
    "ignore_eos",
    "stream_options",
    "best_of",
    "suffix",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "repetition_penalty",
    "frequency_penalty",
    "min_p",
    "prompt_logprobs",
    "include_stop_str_in_output",
    "tools",
    "user",
]


@given(
    route=st.sampled_from(["completions", "chat/completions", "adapters/load", "adapters/unload", "adapters/pin"]),
    good=st.booleans(),
    body=st.dictionaries(st.sampled_from(FIELDS), JSON | st.integers(0, 3) | st.booleans(), max_size=6),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_breaks_the_server(live, route, good, body):
    start = {
        "model": BASE,
        "max_tokens": 2,
        ("messages" if route.startswith("chat") else "prompt"): HI if route.startswith("chat") else "a",
    }
    reply = live.post(f"/v1/{route}", (start if good else {}) | body)
    assert reply.status < 500, reply.data
    if reply.status >= 400:
        assert reply.error["message"]


def test_unknown_and_broken_adapters_fail_alone(live, base):
    """Each with its own 4xx, again and again, while others' streams go on unharmed."""
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    asked = {"prompt": "abc", "max_tokens": 150, "temperature": 0, "extra_body": {"ignore_eos": True}}
    alone = {m: client.completions.create(model=m, **asked).choices[0].text for m in ("lora", "prefix", "parallel")}

    def stream(model):
        return "".join(chunk.choices[0].text for chunk in client.completions.create(model=model, stream=True, **asked))

    expected = {"wrong-base": 409, "cut": 422, "pickle": 422, "unknown": 422, "empty": 422, "nobody": 404}
    with ThreadPoolExecutor(12) as pool:
        streams = {model: pool.submit(stream, model) for model in alone}
        bad = {(name, i): pool.submit(live.post, "/v1/completions", GOOD | {"model": name, "stream": bool(i)})
               for i in range(2) for name in expected}  # fmt: skip
        for (name, _), reply in ((key, future.result()) for key, future in bad.items()):
            assert reply.status == expected[name], (name, reply.data)
            assert len(reply.error["message"]) > 20 and "Traceback" not in reply.error["message"]
        assert {model: future.result() for model, future in streams.items()} == alone
    assert live.post("/v1/completions", GOOD | {"model": "nobody"}).error["code"] == "model_not_found"
    listed = {one["id"]: one["error"] for one in live.get("/v1/adapters").json["data"]}
    assert listed["cut"] and listed["lora"] is None
    assert live.idle()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


@pytest.fixture
def slow(base, monkeypatch, tmp_path):
    """A server whose steps take a while, with room for two requests."""
    folder = write_folder(tmp_path / "lora", "lora", base)
    with serving(base, {"lora": folder}, options=replace(OPTIONS, max_running=4), max_requests=2) as running:
        run = running.engine.runner.outputs
        monkeypatch.setattr(running.engine.runner, "outputs", lambda batch: (time.sleep(0.03), run(batch))[1])
        yield running


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_hanging_up_frees_everything_at_once(slow, stream, n):
    body = json.dumps(LONG | {"model": "lora", "stream": stream, "n": n}).encode()
    with socket.create_connection(("127.0.0.1", slow.port)) as connection:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: slow.engine.scheduler.running == n)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    began = time.monotonic()
    wait_until(slow.idle)
    assert time.monotonic() - began < 3  # 240 tokens would take over 7 s
    assert slow.post("/v1/completions", GOOD).status == 200


def test_too_many_at_once_are_told_to_come_again(slow):
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(slow.post, "/v1/completions", LONG | {"max_tokens": 60}) for _ in range(2)]
        wait_until(lambda: slow.engine.scheduler.running == 2)
        refused = slow.post("/v1/completions", GOOD)
        assert refused.status == 429 and refused.error["code"] == "overloaded" and refused.headers["Retry-After"]
        assert slow.get("/health").status == 200
        assert [future.result().status for future in busy] == [200, 200]
    assert slow.post("/v1/completions", GOOD).status == 200


def test_a_failing_step_ends_streams_with_an_error_event_and_tells_nothing(slow, monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(slow.post, "/v1/completions", LONG | {"stream": True})
        wait_until(lambda: slow.engine.steps > 4)

        def broken(batch):
            raise RuntimeError("secret detail")

        with monkeypatch.context() as patched:
            patched.setattr(slow.engine.runner, "outputs", broken)
            reply = stream.result()
            again = slow.post("/v1/completions", GOOD)
    assert reply.status == 200 and reply.events[-1]["error"]["type"] == "server_error"
    assert b"secret" not in reply.data and reply.headers["X-Request-Id"] in reply.events[-1]["error"]["message"]
    assert again.status == 500 and b"secret" not in again.data and again.error["code"] == "internal_error"
    assert slow.post("/v1/completions", GOOD).status == 200 and slow.idle()


def test_a_bug_in_a_route_tells_nothing(live, monkeypatch, caplog):
    def broken(body):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(live.engine, "submit", broken)
    reply = live.post("/v1/completions", GOOD)
    assert reply.status == 500 and b"secret" not in reply.data
    assert reply.headers["X-Request-Id"] in caplog.text


def test_lists_wait_for_no_step(live, monkeypatch):
    """Nor does whoever looks, while one hangs, take the threads of those who ask how the server is."""
    inside, go = threading.Event(), threading.Event()
    run = live.engine.runner.outputs

    def hang(batch):
        inside.set()
        assert go.wait(60)
        return run(batch)

    assert live.post("/v1/adapters/load", {"model": "lora"}).json["state"] == "device"
    with monkeypatch.context() as patched, ThreadPoolExecutor(1) as pool:
        patched.setattr(live.engine.runner, "outputs", hang)
        asked = pool.submit(live.post, "/v1/completions", GOOD)
        assert inside.wait(20)
        try:
            with ThreadPoolExecutor(3) as looking:
                paths = ("/v1/models", "/v1/adapters", "/v1/models/lora")
                replies = [one.result(timeout=20) for one in [looking.submit(live.get, path) for path in paths]]
        finally:
            go.set()
        assert [reply.status for reply in replies] == [200, 200, 200]
        assert replies[2].json["state"] == "device" and asked.result().status == 200


def test_an_adapter_in_use_is_not_unloaded(slow):
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(slow.post, "/v1/completions", LONG | {"model": "lora", "max_tokens": 40})
        wait_until(lambda: slow.engine.scheduler.running == 1)
        refused = slow.post("/v1/adapters/unload", {"model": "lora"})
        assert refused.status == 409 and refused.error["code"] == "conflict"
        assert refused.headers["X-Adapter-Digest"]
        assert busy.result().status == 200
    assert slow.post("/v1/adapters/unload", {"model": "lora"}).status == 200


def test_closing_the_engine_ends_streams_with_an_error(slow):
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(slow.post, "/v1/completions", LONG | {"stream": True})
        wait_until(lambda: slow.engine.steps > 4)
        threading.Thread(target=slow.engine.close).start()
        assert stream.result().events[-1]["error"]["code"] == "closed"
    assert slow.get("/ready").status == 503 and slow.get("/health").status == 503
    assert slow.post("/v1/completions", GOOD).status == 503
