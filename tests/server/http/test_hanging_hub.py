"""A hub that never answers holds nobody who does not want to wait, on whatever route: neither thread nor place nor memory."""

import json
import socket
import time
import urllib.request
from contextlib import ExitStack
from http.client import HTTPResponse

import pytest

from graft.hub.registry.remote.client import RemoteRegistry
from graft.server.adapters.loading import HUB_THREADS
from graft.server.adapters.names import MAX_NAME_CHARS
from graft.server.http.clients import SPARE_THREADS
from graft.server.keys.access import Access
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from graft.server.operations.drain import Drain
from tests.conftest import tiny_base
from tests.server.http.test_faults import wait_until
from tests.server.keys.made import bearing, write_keys
from tests.server.live import serving
from tests.server.silent_hub import silent_hub

GOOD = {"model": "test/llama", "prompt": "abc", "max_tokens": 2}
WAITING = [
    ("/v1/completions", {"model": "ann/news", "prompt": "a"}),
    ("/v1/embeddings", {"model": "ann/news", "input": "a"}),
    ("/v1/adapters/load", {"model": "ann/news"}),
    ("/v1/adapters/pin", {"model": "ann/news"}),
    ("/v1/load_lora_adapter", {"lora_name": "news", "lora_path": "ann/news"}),
]
HELD_UP = [
    *WAITING,
    ("/v1/load_lora_adapter", {"lora_name": "eu/news", "lora_path": "ann/news"}),  # whose own name a hub may have
    ("/v1/models/ann/news", None),  # no body: it is a GET
]


@pytest.fixture
def hub():
    with silent_hub() as hub:
        yield hub


@pytest.fixture
def drain():
    return Drain()


@pytest.fixture
def live(hub, drain):
    """With a place for one."""
    with serving(tiny_base("llama"), {}, shelf=RemoteRegistry(hub.url), max_requests=1, drain=drain) as running:
        yield running


def look_ups(live):
    return len(live.engine.loader._loading._look_ups._waiting)


@pytest.mark.parametrize(("path", "body"), HELD_UP)
def test_a_deadline_ends_the_wait(live, path, body):
    reply = asked(live, path, body, "0.3")
    assert reply.status == 408 and reply.error["code"] == "deadline_exceeded"
    assert live.post("/v1/completions", GOOD).status == 200 and live.idle()


@pytest.mark.parametrize(("path", "body"), HELD_UP)
def test_who_goes_away_leaves_no_place_taken(live, hub, path, body):
    with sent(live, path, body):
        wait_until(lambda: hub.asked)
        assert live.post("/v1/completions", GOOD).status == 429
    wait_until(lambda: live.post("/v1/completions", GOOD).status == 200)
    assert live.idle()


@pytest.mark.parametrize(("path", "body"), HELD_UP)
def test_a_drain_refuses_who_waits(live, hub, drain, path, body):
    with sent(live, path, body) as connection:
        wait_until(lambda: hub.asked)
        drain._begun.set()
        connection.settimeout(20)
        reply = HTTPResponse(connection)
        reply.begin()
        assert reply.status == 503 and json.load(reply)["error"]["code"] == "draining"


@pytest.mark.parametrize(("path", "body"), HELD_UP)
def test_who_asks_and_goes_away_leaves_nothing_queued(live, hub, path, body):
    for number in range(HUB_THREADS + 3):
        named = json.loads(json.dumps([path, body]).replace("ann/news", f"ann/news{number}"))
        assert asked(live, *named, "0.2").status == 408
    assert 1 <= len(hub.asked) <= HUB_THREADS  # those hang; the others waited behind them
    wait_until(lambda: not look_ups(live))


def test_what_is_known_is_told_without_the_hub(live, hub):
    """Lists, and what takes an adapter out of memory; and how the server is, while as many ask for models as may."""
    for path in ("/v1/adapters/unload", "/v1/adapters/pin"):
        body = {"model": "ann/news"} | ({"pinned": False} if path.endswith("pin") else {})
        assert asked(live, path, body, "0.3").error["code"] == "not_loaded"
    assert not hub.asked
    with ExitStack() as open_until_then:
        for number in range(2 * SPARE_THREADS):
            open_until_then.enter_context(sent(live, f"/v1/models/ann/other{number}", None))
        wait_until(lambda: hub.asked)
        began = time.monotonic()
        for path in ("/health", "/v1/models", "/v1/adapters", "/metrics"):
            assert live.get(path).status == 200, path
        assert time.monotonic() - began < 5
    wait_until(lambda: live.post("/v1/completions", GOOD).status == 200)


def test_where_no_hub_would_be_asked_no_place_is_taken(live, hub):
    with sent(live, *WAITING[0]):
        wait_until(lambda: hub.asked)
        assert asked(live, "/v1/models/ann/news", None, "9").status == 429  # the one place is taken
        for name in ("test/llama", "nobody", "ann/" + "n" * MAX_NAME_CHARS):
            assert asked(live, f"/v1/models/{name}", None, "9").status == (200 if name == "test/llama" else 404), name


def test_who_asks_about_a_model_is_counted_by_their_keys_limits(hub, tmp_path):
    """Else one key could hold the places of all."""
    (key,) = write_keys(tmp_path / "keys.toml", {"single": {"concurrency": 1}}).values()
    access = Access(Keyring(KeyFile(tmp_path / "keys.toml", has_hub=False), None))
    hanging = serving(tiny_base("llama"), {}, shelf=RemoteRegistry(hub.url), access=access)
    with hanging as live, sent(live, "/v1/models/ann/news", None, bearing(key)):
        wait_until(lambda: hub.asked)
        second = asked(live, "/v1/models/ann/other", None, "9", bearing(key))
        assert second.status == 429 and "1 requests at once" in second.error["message"]
        assert asked(live, "/v1/models/test/llama", None, "9", bearing(key)).status == 200


def asked(live, path, body, seconds, more=None):
    headers = {"X-Request-Timeout": seconds} | (more or {})
    if body is None:
        return live.send(urllib.request.Request(live.url + path, headers=headers))
    return live.post(path, body, headers)


def sent(live, path, body, more=None):
    """A connection by which that has been asked."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'POST' if data else 'GET'} {path} HTTP/1.1\r\nHost: x\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in (more or {}).items())
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n" if data else "\r\n"
    connection = socket.create_connection(("127.0.0.1", live.port))
    connection.sendall(head.encode() + data)
    return connection
