"""Clients that send or read slowly, too much, oddly or not at all: a clear error or a close, and nothing that stays held."""

import http.client
import json
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
from waitress.channel import ClientDisconnected

from graft.hub.connections import Terms, unsettled
from graft.server.http import schemas
from graft.server.http.message_bodies import MAX_MESSAGES
from graft.server.http.wire import connections
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, OPTIONS, Live, Reply, serving

BASE = "test/llama"
SHORT = {"model": BASE, "prompt": "abc", "max_tokens": 2}
PAGE = "http://localhost:3000"
LONG = SHORT | {"max_tokens": 240, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """One whose patience with clients is a second."""
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "Terms", partial(Terms, read_s=1.0, send_s=1.0))
        with serving(
            base, {"lora": folder}, options=replace(OPTIONS, cache_bytes=1 << 23), cors_origins=[PAGE]
        ) as running:
            yield running


def request_bytes(body: object, *, version="1.1", headers=(), path="/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/{version}", "Host: x", "Content-Type: application/json", *headers]
    if not any(line.startswith("Transfer-Encoding") for line in headers):
        lines.append(f"Content-Length: {len(data)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(data[at : at + 7]), data[at : at + 7]) for at in range(0, len(data), 7))
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + chunks + b"0\r\n\r\n"


@contextmanager
def connected(live: Live, receive_bytes: int | None = None):
    with socket.socket() as connection:
        connection.settimeout(20)
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.connect(("127.0.0.1", live.port))
        yield connection


def read_all(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(1 << 16):
            found += part
    except ConnectionResetError:
        pass
    return found


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.02)


def held(live: Live) -> tuple[int, int]:
    """Open files and threads."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@contextmanager
def nothing_stays(live: Live):
    for model in (BASE, "lora"):  # loads start threads that stay
        live.post("/v1/completions", SHORT | {"model": model})
    wait_until(lambda: live.idle() and not unsettled(live.sockets))
    before = held(live)
    yield
    wait_until(lambda: live.idle() and not unsettled(live.sockets) and held(live) <= before)
    assert live.post("/v1/completions", SHORT).status == 200


def test_a_clock_that_is_set_back_makes_nobody_new(live, monkeypatch):
    """Who has only connected is waited for by a drain, but not for an hour."""
    with connected(live):
        wait_until(lambda: unsettled(live.sockets))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 3600)
        wait_until(lambda: not unsettled(live.sockets))


def test_a_reader_that_stops_costs_bounded_memory_and_is_hung_up_on(live):
    body = LONG | {"stream": True, "n": 32, "logprobs": 20, "max_tokens": 200}  # some 4 MB
    with nothing_stays(live), connected(live, 4096) as connection:
        connection.sendall(request_bytes(body))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        most = 0

        def dropped() -> bool:
            nonlocal most
            channels = channels_of(live)
            most = max([most, *(each.total_outbufs_len for each in channels)])
            return bool(most) and not channels

        began = time.monotonic()
        wait_until(dropped, 30)
        assert time.monotonic() - began < 25
        assert most < connections.MOST_UNREAD_BYTES


def test_a_reader_that_is_slow_gets_everything(live):
    body = LONG | {"stream": True, "n": 8, "logprobs": 20, "max_tokens": 60}
    with connected(live, 4096) as connection:
        connection.sendall(request_bytes(body))
        found = b""
        while part := connection.recv(1 << 15):
            found += part
            time.sleep(0.005)
    assert found.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and found.count(b"data: ") > 60


SLOW = [
    b"",
    b"POST /v1/comp",
    request_bytes(SHORT, headers=(f"Origin: {PAGE}",))[:-50],
    f"POST / HTTP/1.1\r\norigin:{PAGE}\r\nHo".encode(),
]


@pytest.mark.parametrize("sent", SLOW)
def test_a_request_that_comes_byte_by_byte_is_refused(live, sent):
    with nothing_stays(live), connected(live) as connection:
        connection.sendall(sent)
        began, answer = time.monotonic(), b""
        connection.settimeout(0.2)
        while time.monotonic() - began < 6 and sent:
            try:
                connection.sendall(b"x" if sent.startswith(b"POST /v1/comp") else b"st")
                answer += connection.recv(1 << 16)
            except TimeoutError:
                continue
            except OSError:
                break
        if sent:
            reply = read_reply(answer)
            assert reply.status == 408 and reply.error["code"] == "request_timeout"
            assert time.monotonic() - began < 5
            allowed = reply.headers.get("Access-Control-Allow-Origin")
            assert allowed == (PAGE if PAGE.encode() in sent else None)


def test_connections_that_say_nothing_keep_nobody_out(live, monkeypatch):
    monkeypatch.setattr(connections, "Terms", partial(Terms, read_s=1.0))
    with serving(tiny_base("llama"), {}, max_requests=1) as small:  # (1 + 16) x 4 connections
        silent = [socket.create_connection(("127.0.0.1", small.port)) for _ in range(120)]
        assert small.post("/v1/completions", SHORT).status == 200
        for each in silent:
            each.close()


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"prompt": "x" * 10_000_000}, 400, "context_length_exceeded", "prompt"),
        ({"prompt": [5] * 2_000_000}, 400, "context_length_exceeded", "prompt"),
        ({"stop": ["ab"] * 100_000}, 400, "invalid_request", "stop"),
        ({"stop": ["x" * 1000]}, 400, "invalid_request", "stop[0]"),
        ({"prompt": "x" * (33 << 20)}, 413, "request_entity_too_large", None),
        ({"timeout": 0}, 400, "invalid_request", "timeout"),
        ({"timeout": "soon"}, 400, "invalid_request", "timeout"),
    ],
)
def test_what_is_too_much_is_said(live, change, status, code, param):
    with nothing_stays(live):
        began = time.monotonic()
        reply = live.post("/v1/completions", SHORT | change)
        assert reply.status == status and time.monotonic() - began < 10
        assert reply.json["error"]["code"] == code and reply.json["error"]["param"] == param


def test_large_bodies_are_read_a_few_at_once_and_small_ones_beside_them(monkeypatch):
    monkeypatch.setattr("graft.server.http.service.MOST_BODIES_BYTES", 5 << 20)
    large, inside, go = SHORT | {"prompt": "x" * (2 << 20)}, threading.Semaphore(0), threading.Event()
    read = schemas.parse_json

    def slowly(data: bytes) -> object:
        if len(data) > 1 << 20:
            inside.release()
            assert go.wait(60)
        return read(data)

    monkeypatch.setattr(schemas, "parse_json", slowly)
    with serving(tiny_base("llama"), {}) as alone, ThreadPoolExecutor(2) as pool:
        try:
            first = [pool.submit(alone.post, "/v1/completions", large) for _ in range(2)]
            assert all(inside.acquire(timeout=20) for _ in first)
            refused = alone.post("/v1/completions", large)
            assert (refused.status, refused.error["code"], refused.headers["Retry-After"]) == (429, "overloaded", "1")
            assert alone.post("/v1/completions", SHORT).status == 200
        finally:
            go.set()
        assert {each.result().error["code"] for each in first} == {"context_length_exceeded"}
        for _ in range(3):  # their room has come back
            assert alone.post("/v1/completions", large).status == 400


@pytest.mark.parametrize(
    ("path", "field"), [("/v1/chat/completions", "messages"), ("/v1/messages", "messages"), ("/v1/responses", "input")]
)
def test_turns_without_end_are_refused_before_each_is_looked_at(live, path, field):
    for count, code in ((MAX_MESSAGES, "context_length_exceeded"), (20 * MAX_MESSAGES, "invalid_request")):
        reply = live.post(
            path,
            {
                "model": BASE,
                **({} if field == "input" else {"max_tokens": 2}),
                field: [{"role": "user", "content": "a"}] * count,
            },
        )
        assert reply.status == 400, reply.data
        error = reply.json["error"]
        assert error.get("code", code) == code and ("at most 10000 items" in error["message"]) == (count > MAX_MESSAGES)


def test_a_body_without_end_is_hung_up_on(live):
    with nothing_stays(live), connected(live) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        part = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        with pytest.raises(OSError):
            for _ in range(200):
                connection.sendall(part)


def test_requests_one_upon_another_are_answered_in_their_order(live):
    asked = [SHORT | {"max_tokens": 1 + i % 5, "ignore_eos": True} for i in range(20)]
    with connected(live) as connection:
        sender = threading.Thread(target=lambda: connection.sendall(b"".join(map(request_bytes, asked))))
        sender.start()
        answers = []
        stream = connection.makefile("rb")
        for _ in asked:
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = http.client.parse_headers(stream)
            answers.append(json.loads(stream.read(int(headers["Content-Length"]))))
        sender.join()
    assert [one["usage"]["completion_tokens"] for one in answers] == [one["max_tokens"] for one in asked]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("version", "headers"), [("1.0", ()), ("1.1", ("Transfer-Encoding: chunked", "Connection: close"))]
)
def test_old_and_chunked_http(live, version, headers, stream):
    with connected(live) as connection:
        connection.sendall(request_bytes(SHORT | {"stream": stream}, version=version, headers=headers))
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/{version} 200".encode())
    assert (b"Transfer-Encoding" in head) == (version == "1.1" and stream)
    assert b"data: [DONE]" in body if stream else json.loads(body)["choices"]


ORIGIN = f"Origin: {PAGE}".encode()
NO_REQUESTS = [
    (request_bytes(SHORT, headers=("Transfer-Encoding: gzip",)), 501),
    (request_bytes(SHORT)[:-1].replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"), 400),
    (b"NONSENSE\r\nHost: x\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nbad header\r\nHost: x\r\n\r\n", 400),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", 431),
    (b"GET /health HTTP/1.1\r\nX: " + b"y" * 262_000 + b"\r\nHost: x\r\nY: " + b"y" * 300, 431),
    (request_bytes(SHORT | {"prompt": "x" * (33 << 20)}), 413),
]


@pytest.mark.parametrize(("sent", "status"), NO_REQUESTS)
def test_what_is_no_request_is_refused_as_all_is(live, sent, status):
    """The application says it, also where no head could be read: pages of other origins may read it."""
    with nothing_stays(live):
        for origin, allowed in ((ORIGIN, PAGE), (b"Origin: http://elsewhere", None), (b"", None)):
            reply = sent_raw(live, sent.replace(b"Host: x", b"Host: x\r\n" + origin if origin else b"Host: x"))
            assert reply.status == status and reply.error["code"]
            assert reply.headers["Connection"] == "close"
            assert reply.headers.get("Access-Control-Allow-Origin") == allowed


def sent_raw(live: Live, sent: bytes) -> Reply:
    with connected(live) as connection:
        connection.sendall(sent)
        return read_reply(read_all(connection))


def read_reply(received: bytes) -> Reply:
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return Reply(int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body)


def test_what_is_no_request_has_its_dialects_shape(live):
    reply = sent_raw(live, request_bytes(SHORT | {"prompt": "x" * (33 << 20)}, path="/v1/messages"))
    assert reply.status == 413 and reply.json["error"]["type"] == "request_too_large"
    assert reply.json["request_id"] == reply.headers["X-Request-Id"]


def test_clients_that_vanish_leave_nothing(live):
    asked = request_bytes(LONG | {"model": "lora", "n": 2, "stream": True})
    with nothing_stays(live):
        for sent in (asked, asked[:-3], asked[:30], b"", asked * 3) * 6:
            with socket.create_connection(("127.0.0.1", live.port)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
                connection.sendall(sent)


TCP_REPAIR = 19  # linux/tcp.h: such a connection is closed without a word


def test_a_side_that_says_nothing_is_asked_after_and_hung_up_on_in_half_a_minute(live):
    with connected(live) as connection:
        place = connection.getsockname()
        wait_until(lambda: any(each.addr == place for each in channels_of(live)))
        [served] = [each.socket for each in channels_of(live) if each.addr == place]
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        idle_s, every_s, probes, given_up_ms = (
            served.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names
        )
        assert served.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert idle_s + every_s * probes == 30 and given_up_ms == 30_000


def test_who_goes_without_a_word_is_noticed_while_nothing_is_written(monkeypatch):
    """As where a machine or a network fails: no end and no reset comes."""
    monkeypatch.setattr("graft.hub.connections._VANISHED_S", 6)
    with serving(tiny_base("llama"), {}) as alone, connected(alone) as connection:
        outputs = alone.engine.runner.outputs
        alone.engine.runner.outputs = lambda batch: (time.sleep(0.2), outputs(batch))[1]  # 48 s in all
        connection.sendall(request_bytes(LONG))
        wait_until(lambda: alone.engine.scheduler.running)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except PermissionError:
            pytest.skip("closing without a word takes root's rights")
        connection.close()
        wait_until(alone.idle)


def test_who_is_hung_up_on_while_a_token_is_written_is_no_fault(live):
    """The thread that writes has seen a connection, and waits for the lock under which it is closed."""
    told = []

    def write(channel) -> None:
        try:
            channel.write_soon(b"x")
        except Exception as error:
            told.append(type(error))

    wait_until(lambda: not channels_of(live))
    with connected(live) as other, connected(live) as connection:
        place = connection.getsockname()
        wait_until(lambda: any(each.addr == place for each in channels_of(live)))
        [channel] = [each for each in channels_of(live) if each.addr == place]
        writer = threading.Thread(target=write, args=(channel,))
        with channel.outbuf_lock:
            writer.start()
            time.sleep(0.2)  # too short a time passes
            channel.handle_close()
        writer.join(10)
        # The loop goes round before anybody else comes, who may get the number that it still waits for: here another thread than
        # its own has closed it.
        other.sendall(request_bytes(SHORT, headers=("Connection: close",)))
        assert b" 200 " in read_all(other)
    assert told == [ClientDisconnected]


def channels_of(live: Live) -> list[connections.Channel]:
    return [each for each in list(live.sockets.values()) if isinstance(each, connections.Channel)]


# Deadlines


@pytest.fixture
def slow(live, monkeypatch):
    outputs = live.engine.runner.outputs
    monkeypatch.setattr(live.engine.runner, "outputs", lambda batch: (time.sleep(0.03), outputs(batch))[1])
    return live


@pytest.mark.parametrize("way", ["field", "header"])
def test_an_answer_that_takes_too_long_is_given_up(slow, way):
    body = LONG | ({"timeout": 0.4} if way == "field" else {})
    headers = {"X-Request-Timeout": "0.4"} if way == "header" else {}
    with nothing_stays(slow):
        began = time.monotonic()
        reply = slow.post("/v1/completions", body, headers)
        assert reply.status == 408 and 0.3 < time.monotonic() - began < 3
        assert reply.error["code"] == "deadline_exceeded" and "within 0.4 s" in reply.error["message"]
        assert reply.headers["X-Should-Retry"] == "false"
        last = slow.post("/v1/completions", body | {"stream": True}, headers).events[-1]
        assert last["error"]["code"] == "deadline_exceeded"
    assert slow.post("/v1/completions", SHORT, {"X-Request-Timeout": "never"}).error["param"] == "X-Request-Timeout"
    assert slow.post("/v1/completions", SHORT, {"X-Request-Timeout": "60"}).status == 200


def test_the_server_sets_the_longest_time():
    with serving(tiny_base("llama"), {}, request_timeout=0.3) as live:
        outputs = live.engine.runner.outputs
        live.engine.runner.outputs = lambda batch: (time.sleep(0.03), outputs(batch))[1]
        for body in (LONG, LONG | {"timeout": 60}):
            assert live.post("/v1/completions", body).error["code"] == "deadline_exceeded"
        embed = {"model": BASE, "input": ["abc"] * 500}
        assert live.post("/v1/embeddings", embed).error["code"] == "deadline_exceeded"
        wait = time.monotonic() + 10
        while not live.idle() and time.monotonic() < wait:
            time.sleep(0.05)
        assert live.idle()
