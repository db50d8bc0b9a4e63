"""One thread writes all streams: in every dialect what a thread of its own would write, and nobody waits for a slow reader."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from graft.server.commands.http_server import _TaskBody
from graft.server.engine.client import EngineClient
from graft.server.http.app import create_app
from graft.server.http.response_shapes import Writer
from graft.server.http.streaming.pump import PumpedStream
from graft.server.operations.patience import Patience
from tests.conftest import tiny_base
from tests.server.conftest import no_threads
from tests.server.live import CHAT_TEMPLATE, serving


@pytest.fixture(scope="module")
def live():
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    with serving(base, {}) as running:
        yield running


CHAT = {"model": "test/llama", "messages": [{"role": "user", "content": "hallo"}], "temperature": 0, "stream": True}
ASKED = [
    ("/v1/completions", {"model": "test/llama", "prompt": "a", "temperature": 0, "logprobs": 2, "stream": True}),
    ("/v1/chat/completions", {**CHAT, "max_tokens": 20, "stream_options": {"include_usage": True}}),
    ("/v1/messages", {**CHAT, "max_tokens": 20}),
    ("/v1/responses", {"model": "test/llama", "input": "hallo", "temperature": 0, "max_output_tokens": 20, "stream": True}),
    ("/v1/completions", {"model": "test/llama", "prompt": [2] * 250, "max_tokens": 200, "stream": True}),  # refused
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_a_stream_says_what_a_thread_of_its_own_would_write(live, path, body):
    alone = create_app(EngineClient(live.engine)).test_client().post(path, json=body)
    pumped = live.post(path, body)
    assert pumped.status == alone.status_code
    assert texts(pumped.data) == texts(alone.data)


def texts(data: bytes) -> tuple[list[str], str]:
    """Which kinds of events there are, and what they say together; how it is cut into pieces is not told."""
    kinds, said = [], ""
    for block in data.decode().split("\n\n"):
        line = block.split("\n")[-1].removeprefix("data: ")
        event = json.loads(line) if line.startswith("{") else {}
        kinds.append(event.get("type", event.get("object", line[:6])))
        for choice in event.get("choices", ()):
            said += choice.get("text") or choice.get("delta", {}).get("content") or ""
        delta = event.get("delta", "")
        said += delta if isinstance(delta, str) else delta.get("text", "")
    return sorted(set(kinds)), said


def opened(live, body, receive_bytes=None) -> socket.socket:
    one = socket.socket()
    if receive_bytes:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    one.connect(("127.0.0.1", live.port))
    one.settimeout(60)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    one.sendall(head.encode() + data)
    return one


LARGE = {"model": "test/llama", "prompt": "a", "max_tokens": 200, "n": 12, "logprobs": 5, "ignore_eos": True, "stream": True}  # fmt: skip


def test_who_does_not_read_holds_up_nobody_and_loses_nothing(live):
    with opened(live, LARGE, receive_bytes=4096) as slow:
        quick = live.post("/v1/completions", {**LARGE, "n": 1, "logprobs": None})
        assert quick.events[-1] == "[DONE]"
        until = time.monotonic() + 30
        while not live.idle() and time.monotonic() < until:  # the engine is done with what nobody has read
            time.sleep(0.05)
        assert live.idle()
        data = b""
        while part := slow.recv(1 << 16):
            data += part
    assert data.endswith(b"0\r\n\r\n") and data.count(b"[DONE]") == 1
    assert data.count(b'"finish_reason":"length"') == 12


def test_a_client_that_hangs_up_leaves_no_stream_and_no_thread(live):
    with opened(live, {**LARGE, "max_tokens": 250}) as gone:
        gone.recv(100)
    assert_all_ended(live)


def test_a_stream_for_which_no_thread_can_be_started_ends_and_the_next_one_is_written(live):
    body = {**LARGE, "n": 1, "max_tokens": 250}
    assert_all_ended(live)
    with no_threads("graft-pump"), opened(live, body) as refused:
        assert refused.recv(100).startswith(b"HTTP/1.1 500 ")
    assert_all_ended(live)
    with opened(live, body) as written:
        data = b""
        while b"[DONE]" not in data and (part := written.recv(1 << 16)):
            data += part
    assert data.count(b"[DONE]") == 1


def assert_all_ended(live):
    until = time.monotonic() + 20
    while not (live.idle() and not pumps()) and time.monotonic() < until:
        time.sleep(0.05)
    assert live.idle() and not pumps()


def pumps() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "graft-pump"]


def test_a_bug_in_writing_one_stream_ends_that_one_alone(live, monkeypatch):
    piece = Writer.piece

    def broken(self, given):
        if self.answer.asked.n == 3:
            raise RuntimeError("secret detail")
        return piece(self, given)

    monkeypatch.setattr(Writer, "piece", broken)
    body = {"model": "test/llama", "prompt": "a", "max_tokens": 30, "ignore_eos": True, "stream": True}
    answers = {}

    def ask(n):
        answers[n] = live.post("/v1/completions", {**body, "n": n}).events

    askers = [threading.Thread(target=ask, args=(n,)) for n in (1, 3, 2)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(30)
    assert answers[1][-1] == answers[2][-1] == "[DONE]"
    assert answers[3][-1]["error"]["code"] == "internal_error" and "secret" not in str(answers[3])


def fails(*_):
    raise RuntimeError("secret detail")


@pytest.fixture
def slow(live, monkeypatch):
    outputs = live.engine.runner.outputs
    monkeypatch.setattr(live.engine.runner, "outputs", lambda batch: (time.sleep(0.02), outputs(batch))[1])
    return live


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        (*ASKED[0], '"code":"internal_error"'),
        (*ASKED[1], '"code":"internal_error"'),
        (*ASKED[2], "event: error\n"),
        (*ASKED[3], "event: response.failed\n"),
    ],
)
def test_a_stream_that_can_not_be_written_does_not_end_like_a_whole_one(slow, monkeypatch, path, body, last):
    write = _TaskBody.write

    def written(*given):
        return (fails if threading.current_thread().name == "graft-pump" else write)(*given)

    monkeypatch.setattr(_TaskBody, "write", written)
    data = slow.post(path, body).data.decode()
    assert last in data.split("\n\n")[-2] and "secret" not in data


def test_where_not_even_that_can_be_told_nobody_waits(slow, monkeypatch):
    monkeypatch.setattr(PumpedStream, "_events", fails)
    monkeypatch.setattr(Writer, "failure", fails)
    with opened(slow, ASKED[0][1]) as one:
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            part = one.recv(1 << 16)
            assert part
            data += part
    assert b"data:" not in data


def test_who_can_not_be_looked_after_is_told_and_nobody_else(slow, monkeypatch):
    body = {"model": "test/llama", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    look, first = Patience.look, []

    def seen(patience, **how):
        if threading.current_thread().name == "graft-pump" and (not first or patience is first[0]):
            first[:] = [patience]
            fails()
        return look(patience, **how)

    monkeypatch.setattr(Patience, "look", seen)
    with ThreadPoolExecutor(3) as pool:
        ends = [one.result().events[-1] for one in [pool.submit(slow.post, "/v1/completions", body) for _ in range(3)]]
    assert ends.count("[DONE]") == 2
    assert next(end for end in ends if end != "[DONE]")["error"]["code"] == "internal_error"


def test_where_the_thread_fails_all_its_streams_say_so_and_the_next_have_another(slow, monkeypatch):
    body = {"model": "test/llama", "prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with monkeypatch.context() as patched, ThreadPoolExecutor(3) as pool:
        patched.setattr(PumpedStream, "look_after", fails)
        for answer in [pool.submit(slow.post, "/v1/completions", body) for _ in range(3)]:
            last = answer.result().events[-1]
            assert last["error"]["code"] == "internal_error" and "secret" not in str(last)
    assert slow.post("/v1/completions", body | {"max_tokens": 60}).events[-1] == "[DONE]"
