"""An ingress in front of two engines of this process: keys, names, retries, broken answers, what it shows. Without Ray."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is in the extras `test` and `ray`")

from graft.hub.registry.registry import Registry
from graft.server.http.access.introduction import Introduction
from graft.server.keys.access import Access
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from graft.server.replica_state import BaseIdentity
from graft.server.scale import door, exchange
from graft.server.scale.fleet import Asked, Declared, Fleet, Seen
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.keys.made import bearing, write_keys
from tests.server.live import CHAT_TEMPLATE, serving
from tests.server.scale.in_process import SECRET, dead, ingress, seen

KEYS = {
    "plain": {},
    "admin": {"admin": True},
    "limited": {"adapters": ["other", "ann/*"], "base": False},
    "slow": {"requests_per_minute": 3},
    "small": {"tokens_per_minute": 60},
    "single": {"concurrency": 1},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base with two folders, a registry with an adapter in two versions, and keys."""
    top, base = tmp_path_factory.mktemp("front"), tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    folders = {name: write_folder(top / name, "lora", base, seed) for seed, name in enumerate(("mine", "other"))}
    registry = Registry(top / "registry.db")
    registry.add_base(base.spec)
    versions = [
        registry.publish(write_folder(top / f"v{number}", "lora", base, 5 + number), "ann/sql") for number in (1, 2)
    ]
    return top, base, folders, versions


@pytest.fixture(scope="module")
def engines(place):
    """Two engines that believe an ingress alone."""
    top, base, folders, _ = place
    shelf, access = Registry(top / "registry.db", create=False), Access(secret=SECRET)
    with (
        serving(base, folders, shelf=shelf, access=access) as one,
        serving(tiny_like(base), folders, shelf=shelf, access=access) as two,
    ):
        yield one, two


def tiny_like(base):
    other = tiny_base("llama")
    other.tokenizer.chat_template = base.tokenizer.chat_template
    return other


@pytest.fixture
def front(place, engines):
    top, _, folders, _ = place
    replicas = [seen(name, one) for name, one in zip("ab", engines, strict=True)]
    with ingress(replicas, shelf=lambda: Registry(top / "registry.db", create=False), local=folders) as running:
        yield running


@pytest.fixture(scope="module")
def keys(place):
    return write_keys(place[0] / "keys.toml", KEYS)


@pytest.fixture
def locked(place, engines, keys):
    """With keys and a file of what was used."""
    top, _, folders, _ = place
    replicas = [seen(name, one) for name, one in zip("ab", engines, strict=True)]
    with ingress(
        replicas,
        access=lambda base: Access(Keyring(KeyFile(top / "keys.toml", has_hub=False), None)),
        shelf=lambda: Registry(top / "registry.db", create=False),
        local=folders,
        usage=top / "usage.jsonl",
    ) as running:
        yield running


def ask(running, model="mine", headers=None, **more):
    body = {"model": model, "prompt": "ab", "max_tokens": 2, "ignore_eos": True, **more}
    return running.post("/v1/completions", body, headers or {})


def prefer(running, replicas, id):
    """Have requests go to one replica, as long as it is not full."""
    running.fleet.see([replace(one, beat=one.beat + 1, under_way=0 if one.id == id else 10_000) for one in replicas])


# Who asks


def test_an_engine_behind_an_ingress_answers_nobody_else(engines):
    assert ask(engines[0]).error["code"] == "invalid_api_key"
    wrong = Introduction("1.2.3.4", admin=True).headers("another secret")
    assert ask(engines[0], headers=wrong).status == 401
    assert engines[0].get("/ready").status == 200


def test_a_limit_counts_what_all_engines_answer(locked, keys, engines):
    replicas, left = locked.fleet.replicas(), []
    for id in "aba":
        prefer(locked, replicas, id)
        replicas = locked.fleet.replicas()
        reply = ask(locked, headers=bearing(keys["slow"]))
        assert reply.status == 200
        left.append(reply.headers["x-ratelimit-remaining-requests"])
    assert left == ["2", "1", "0"]
    over = ask(locked, headers=bearing(keys["slow"]))
    assert (over.status, over.error["code"]) == (429, "rate_limit_exceeded")


def test_tokens_are_counted_once_for_all_engines(locked, keys):
    told = ask(locked, headers=bearing(keys["small"]), max_tokens=99)
    assert told.error["code"] == "above_rate_limit"
    used = [ask(locked, headers=bearing(keys["small"]), max_tokens=18).status for _ in range(4)]
    assert used == [200, 200, 200, 429]  # 20 each


def test_a_key_has_as_many_answers_under_way_as_it_may_wherever_they_are(locked, keys):
    with under_way(locked, headers=bearing(keys["single"])) as first:
        assert ask(locked, headers=bearing(keys["single"])).error["code"] == "rate_limit_exceeded"
    assert first.closed or not first.read()
    wait_for(lambda: ask(locked, headers=bearing(keys["single"])).status == 200)


def test_what_was_used_is_written_down_once_under_the_name_that_was_asked_for(locked, keys, place):
    ask(locked, "ann/sql", bearing(keys["plain"]))
    usage = place[0] / "usage.jsonl"
    wait_for(lambda: "ann/sql" in usage.read_text())
    (line,) = [told for told in map(json.loads, usage.read_text().splitlines()) if told["model"] == "ann/sql"]
    assert (line["key"], line["completion_tokens"], line["digest"]) == ("plain", 2, place[3][1].digest)


@pytest.mark.parametrize(
    ("key", "model", "status"),
    [("limited", "mine", 403), ("limited", "test/llama", 403), ("limited", "other", 200), ("limited", "ann/sql", 200),
     ("plain", "test/llama", 200), ("plain", "nobody", 404)],
)  # fmt: skip
def test_keys_are_for_their_models(locked, keys, key, model, status):
    assert ask(locked, model, bearing(keys[key])).status == status


def test_who_shows_no_key_or_a_wrong_one(locked, keys):
    assert ask(locked).status == 401 and ask(locked, headers=bearing("sk-graft-no")).status == 401
    refused = locked.post("/v1/messages", {"model": "mine"}, {})
    assert refused.json["type"] == "error" and refused.json["error"]["type"] == "authentication_error"
    assert locked.get("/ready").status == 200 and locked.get("/metrics").status == 401
    assert locked.post("/v1/adapters/load", {"model": "mine"}, bearing(keys["plain"])).status == 403
    assert locked.post("/v1/adapters/load", {"model": "mine"}, bearing(keys["admin"])).status == 200


def test_a_key_file_that_has_gone_bad_is_told_and_the_keys_before_hold(locked, keys, place):
    file = place[0] / "keys.toml"
    good = file.read_text()
    assert ask(locked, headers=bearing(keys["plain"])).status == 200 and "keys" not in locked.get("/ready").json
    try:
        file.write_text("[[[")
        wait_for(
            lambda: ask(locked, headers=bearing(keys["plain"])).status == 200 and "keys" in locked.get("/ready").json
        )
    finally:
        file.write_text(good)
    wait_for(
        lambda: ask(locked, headers=bearing(keys["plain"])).status == 200 and "keys" not in locked.get("/ready").json
    )


def test_lists_hold_what_a_key_is_for(locked, keys):
    def names(path, key):
        request = http.client.HTTPConnection("127.0.0.1", locked.port)
        request.request("GET", path, headers=bearing(keys[key]))
        return {one["id"] for one in json.load(request.getresponse())["data"]}

    assert names("/v1/models", "limited") == {"other", "ann/sql"} == names("/v1/adapters", "limited")
    assert names("/v1/models", "plain") == {"test/llama", "mine", "other", "ann/sql"}


# Names


def test_a_promotion_holds_for_the_next_request_and_answers_say_what_was_asked_for(front, place):
    registry = Registry(place[0] / "registry.db", create=False)
    for version in place[3]:
        registry.promote(f"ann/sql@{version.id}", "production")
        for path, body in (
            ("/v1/completions", {"prompt": "ab", "max_tokens": 1}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
            ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
            ("/v1/embeddings", {"input": "a"}),
        ):
            reply = front.post(path, {"model": "ann/sql@production", **body})
            assert (reply.status, reply.json["model"]) == (200, "ann/sql@production"), (path, reply.data)
            assert reply.headers["X-Adapter-Digest"] == version.digest


def test_no_answer_mixes_versions_while_an_alias_moves(front, place):
    """What a version says is known; every answer is one's from its first token to its last."""
    registry = Registry(place[0] / "registry.db", create=False)
    greedy = {"temperature": 0, "max_tokens": 12}
    texts = {
        version.digest: ask(front, f"ann/sql@{version.id}", **greedy).json["choices"][0]["text"] for version in place[3]
    }
    over = threading.Event()

    def move():
        while not over.is_set():
            for version in place[3]:
                registry.promote(f"ann/sql@{version.id}", "moving")
                time.sleep(0.005)

    registry.promote(f"ann/sql@{place[3][0].id}", "moving")
    mover = threading.Thread(target=move)
    mover.start()
    replies = [ask(front, "ann/sql@moving", **greedy) for _ in range(20)]
    over.set()
    mover.join()
    assert all(one.json["choices"][0]["text"] == texts[one.headers["X-Adapter-Digest"]] for one in replies)
    assert len({one.headers["X-Adapter-Digest"] for one in replies}) == 2


# Engines that don't answer


def test_who_gets_no_byte_of_one_engine_gets_all_of_another(front):
    replicas = front.fleet.replicas()
    front.fleet.see([*replicas, dead(replicas[0], "gone")])
    assert front.fleet.choose(Asked("x" * 64))[0] == "gone"
    assert [ask(front, stream=stream).status for stream in (False, True, False)] == [200] * 3
    assert "gone" not in front.fleet.choose(Asked("x" * 64))  # nobody tries again until it has reported
    assert "it does not answer" in front.get("/ready").json["replicas"]["gone"]["missing"]


@pytest.mark.parametrize(("status", "code"), [(503, "draining"), (502, "unreachable"), (429, "overloaded")])
def test_an_engine_that_can_not_is_no_reason_that_another_may_not(front, status, code):
    replicas = front.fleet.replicas()
    body = json.dumps({"error": {"message": "not here", "type": "server_error", "code": code, "param": None}})
    with raw_engine(f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}") as url:
        front.fleet.see([*replicas, dead(replicas[0], "unable", url)])
        assert ask(front).status == 200
        front.fleet.see([dead(replicas[0], "alone", url)])
        assert ask(front).json["error"]["code"] == code  # where nobody else is, that is the answer
    front.fleet.see(replicas)


def test_a_refusal_that_others_would_repeat_is_the_answer(front):
    replicas = front.fleet.replicas()
    with raw_engine("HTTP/1.1 429 No\r\nContent-Length: 26\r\n\r\n" + '{"code": "rate_limit_exc"}') as url:
        front.fleet.see([*replicas, dead(replicas[0], "limits", url)])
        assert ask(front).status == 429


@pytest.mark.parametrize(
    ("path", "event"),
    [("/v1/completions", b'data: {"error":{'), ("/v1/responses", b"event: error\ndata: {"), ("/v1/messages", b"event: error\n")],
)  # fmt: skip
def test_a_stream_that_breaks_off_says_so_in_its_dialect(front, path, event):
    replicas = front.fleet.replicas()
    begun = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    )
    with raw_engine(begun) as url:
        front.fleet.see([dead(replicas[0], "breaks", url)])
        reply = front.post(path, {"model": "mine", "stream": True})
    first, rest = reply.data.split(b"\n\n", 1)
    assert first == b"data: 1" and rest.startswith(event) and b"replica" in rest


def test_an_answer_that_is_no_stream_breaks_off_as_it_does(front):
    replicas = front.fleet.replicas()
    with raw_engine('HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"half":') as url:
        front.fleet.see([dead(replicas[0], "breaks", url)])
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            ask(front)


def test_without_an_engine_who_asks_is_told(front, monkeypatch):
    monkeypatch.setattr(exchange, "WAIT_S", 0.2)
    replicas = front.fleet.replicas()
    front.fleet.see([])
    refused = ask(front)
    assert (refused.status, refused.error["code"], refused.headers["Retry-After"]) == (503, "no_replica", "1")
    assert front.get("/ready").status == 503 and front.get("/health").status == 200
    front.fleet.see(replicas)
    assert ask(front).status == 200


def test_who_hangs_up_leaves_nothing_under_way(front, engines):
    with under_way(front, "mine"):
        wait_for(lambda: any(not one.idle() for one in engines))
    wait_for(lambda: all(one.idle() for one in engines))
    wait_for(lambda: not front.fleet.requests and not front.front.under_way)


# What several do


def test_unloading_and_letting_go_reach_every_replica(front, engines):
    replicas = front.fleet.replicas()
    for id in "ab":
        prefer(front, replicas, id)
        replicas = front.fleet.replicas()
        assert front.post("/v1/adapters/pin", {"model": "other"}).json["pinned"]
    (shown,) = [one for one in front.get("/v1/adapters").json["data"] if one["id"] == "other"]
    assert set(shown["replicas"]) == {"a", "b"} and shown["state"] == "device"
    assert not front.post("/v1/adapters/pin", {"model": "other", "pinned": False}).json["pinned"]
    assert front.post("/v1/adapters/unload", {"model": "other"}).json["state"] == "disk"
    assert front.post("/v1/adapters/unload", {"model": "other"}).error["code"] == "not_loaded"
    assert not any(shown["digest"] in seen("x", one).resident for one in engines)


def test_models_are_what_any_replica_knows_not_what_one_does(place, engines):
    """As over a hub, which no replica asks for all it has: here the second has one folder less."""
    _, base, folders, _ = place
    with (
        serving(tiny_like(base), {"mine": folders["mine"]}, access=Access(secret=SECRET)) as less,
        ingress([seen("a", less), seen("b", engines[0])], local=folders) as running,
    ):
        names = [one["id"] for one in running.get("/v1/models").json["data"]]
        assert names[0] == "test/llama" and set(names) == {"test/llama", "mine", "other", "ann/sql"}
        prefer(running, running.fleet.replicas(), "b")
        assert ask(running, "other").status == 200
        assert {one["id"]: one.get("state") for one in running.get("/v1/models").json["data"]}["other"] == "device"


def test_a_name_is_given_to_no_single_replica(front):
    refused = front.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "ann/sql"})
    assert (refused.status, refused.error["code"]) == (501, "not_offered")


def test_metrics_say_who_holds_what(front):
    ask(front)
    front.fleet.see([replace(one, beat=one.beat + 1, resident={"d" * 64: 7}) for one in front.fleet.replicas()])
    text = front.get("/metrics").data.decode()
    assert 'graft_replica_resident_bytes{digest="' + "d" * 64 + '",replica="a"} 7.0' in text
    assert 'graft_replica_serves{replica="b"} 1.0' in text


def test_what_an_engine_says_of_a_body_is_passed_on(front):
    assert front.post("/v1/completions", b"no json").error["code"] == "invalid_request"
    assert ask(front, prompt=5).status == 400 and front.get("/v1/nothing").status == 404
    assert "aiohttp" not in front.get("/v1/models").headers.get("Server", "")


# Strangers, browsers, clients that are slow


@pytest.fixture
def alone(engines):
    """One engine that takes everything, and pages of one origin that may call."""
    with ingress([seen("a", engines[0])], cors_origins=("http://page",)) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/adapters", 200), ("GET", "/ready", 200), ("GET", "/health", 200), ("GET", "/v1/models/nobody", 404)],
)
def test_a_page_may_read_what_the_ingress_itself_says(alone, method, path, status):
    for origin, allowed in (("http://page", "http://page"), ("http://other", None)):
        head, _ = raw(alone, f"{method} {path} HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n")
        assert head.status == status and head["Access-Control-Allow-Origin"] == allowed
        assert head["Vary"] == "Origin" and head["X-Request-Id"] and head["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("GET /v1/models HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("\x16\x03\x01\x02\r\n\r\n", 400),
        (f"GET / HTTP/1.1\r\nHost: x\r\nX-A: {'a' * 100_000}\r\n\r\n", 431),
    ],
)
def test_bytes_that_are_no_request_get_an_error_like_any_other_and_leave_no_trace(alone, sent, status, caplog):
    head, body = raw(alone, sent)
    assert head.status == status and not head["Server"]
    assert json.loads(body)["error"].keys() == {"message", "type", "code", "param"}
    assert not any(one.exc_info for one in caplog.records)


def test_an_engine_gets_what_the_client_has_sent(alone):
    """Its body as it is compressed, which engines don't take; a long header; by which name it was called."""
    call = "POST /v1/completions HTTP/1.1\r\nHost: me\r\nConnection: close\r\nContent-Type: application/json\r\n"
    head, body = raw(alone, call + "Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")
    assert head.status == 400 and json.loads(body)["error"]["param"] == "model"
    long = "GET /v1/models HTTP/1.1\r\nHost: me\r\nConnection: close\r\nX-A: " + "a" * 20_000
    assert raw(alone, long + "\r\n\r\n")[0].status == 200
    moved, _ = raw(alone, "GET /v1//models HTTP/1.1\r\nHost: me\r\nConnection: close\r\n\r\n")
    assert moved["Location"] == "http://me/v1/models"


def test_only_looking_is_answered_by_the_ingress_itself(alone):
    for path in ("/health", "/ready"):
        assert alone.post(path, {}).error["code"] == "method_not_allowed"
    assert alone.post("/internal/accounts/guessed/enter", b"garbage").status == 404


def test_who_reads_nothing_and_who_sends_nothing_is_hung_up_on(engines, monkeypatch):
    monkeypatch.setattr(door, "UNREAD_S", 1)
    monkeypatch.setattr(door, "SILENT_S", 1.0)
    chunk = "10000\r\n" + "x" * 0x10000 + "\r\n"
    much = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 200
    with raw_engine(much) as url, ingress([dead(seen("a", engines[0]), "much", url)]) as running:
        silent = socket.create_connection(("127.0.0.1", running.port))
        silent.sendall(b"GET / HTTP/1.1\r\nHost:")
        deaf = socket.create_connection(("127.0.0.1", running.port))
        deaf.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        wait_for(lambda: running.front.under_way)
        wait_for(lambda: not running.front.under_way, 60)
        silent.settimeout(60)
        assert silent.recv(100) == b""
        silent.close(), deaf.close()


# Replicas that are not alike


def test_a_replica_of_another_base_is_refused_in_words():
    base = BaseIdentity("f" * 64, "bfloat16", "c" * 64)
    others = [
        Seen("dtype", "http://x", replace(base, dtype="float32"), "m"),
        Seen("weights", "http://x", replace(base, content="0" * 64), "m"),
        Seen("model", "http://x", replace(base, fingerprint="1" * 64), "m"),
    ]
    fleet = Fleet()
    fleet.see([*others, Seen("a", "http://x", base, "m"), Seen("b", "http://x", base, "m")])
    assert sorted(fleet.choose(Asked(None))) == ["a", "b"]
    for one, words in zip(others, ("another dtype", "other weights", "another model"), strict=True):
        assert words in fleet.lacks(one)[0]
    declared = Fleet(Declared("f" * 64, "float32"))
    declared.see([*others, Seen("a", "http://x", base, "m"), Seen("b", "http://x", base, "m")])
    assert declared.choose(Asked(None)) == ["dtype"]


def test_what_others_have_under_way_counts_with_what_this_ingress_has():
    base = BaseIdentity("f", "d", "c")
    fleet = Fleet()
    one = Seen("a", "http://x", base, "m", beat=1, under_way=5, limit=4, room=1)
    fleet.see([one, Seen("b", "http://x", base, "m", beat=1, limit=4, room=1)])
    assert fleet.choose(Asked(None))[0] == "b"
    with fleet.under_way("b"), fleet.under_way("b"):
        fleet.see([replace(one, beat=2, under_way=0), Seen("b", "http://x", base, "m", beat=2, under_way=2, limit=4)])
        assert fleet.choose(Asked(None))[0] == "a"  # of b's two both are this ingress's own, and counted once
    assert fleet.requests == {}


# Helpers


def raw(running, sent):
    """The answer's head and body to bytes as they are."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(sent.encode("latin-1"))
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
    response.headers.status = response.status
    return response.headers, body


@contextmanager
def under_way(running, model="mine", headers=None):
    """A stream that has begun, and goes on until the context ends."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    body = {"model": model, "prompt": "ab", "max_tokens": 240, "ignore_eos": True, "stream": True}
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json", **(headers or {})}
    )
    response = connection.getresponse()
    assert response.status == 200, response.read()
    yield response
    connection.close()


@contextmanager
def raw_engine(said):
    """Whoever connects gets these bytes, and the connection's end."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):
                with connection.makefile("rb") as asked:
                    head = http.client.parse_headers(asked) if asked.readline() else {}
                    asked.read(int(head.get("Content-Length", 0)))
                connection.sendall(said.encode())

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def wait_for(what, seconds=20.0):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)
