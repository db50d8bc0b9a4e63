"""Clients are told apart by their address, or by what a trusted proxy says, and none of them keeps the others waiting."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_network

import pytest

from graft.server.http.clients import GUESTS, AnswerPlaces, client_of
from tests.conftest import tiny_base
from tests.server.live import OPTIONS, serving

PROXIES = [ip_network("10.0.0.0/8"), ip_network("::1/128")]


@pytest.mark.parametrize(
    ("address", "forwarded", "client"),
    [
        ("1.2.3.4", "", "1.2.3.4"),
        ("1.2.3.4", "9.9.9.9", "1.2.3.4"),  # whoever it is, it is no proxy of ours
        ("10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6, 9.9.9.9", "9.9.9.9"),  # the client wrote the first one itself
        ("10.0.0.1", "6.6.6.6, 9.9.9.9, 10.1.1.1", "9.9.9.9"),  # a proxy behind a proxy
        ("::ffff:10.0.0.1", "9.9.9.9", "9.9.9.9"),
        ("::1", "2001:db8::7", "2001:db8::7"),
        ("10.0.0.1", "unknown", "unknown"),
        ("10.0.0.1", " , ,", "10.0.0.1"),
        ("10.0.0.1", "x" * 5000, "x" * 64),
        ("", "9.9.9.9", ""),
    ],
)
def test_who_asks(address, forwarded, client):
    assert client_of(address, forwarded, PROXIES) == client


def test_one_client_can_not_take_all_places():
    places = AnswerPlaces(4)
    assert [places.enter("many") for _ in range(5)] == [True] * 4 + [False]
    assert [places.enter(f"other {i}") for i in range(GUESTS + 1)] == [True] * GUESTS + [False]
    assert not places.enter("other 0")
    for i in range(GUESTS):
        places.leave(f"other {i}")
    places.leave("many")
    assert places.enter("many") and not places.enter("many")


def test_another_clients_first_token_comes_while_a_thousand_choices_run(monkeypatch):
    """Over HTTP: all places, and all requests at once, are the first client's."""
    flood = {"model": "test/llama", "prompt": ["abc"] * 64, "n": 16, "max_tokens": 150, "ignore_eos": True}
    short = {"model": "test/llama", "prompt": "hello", "max_tokens": 1, "ignore_eos": True}
    options = replace(OPTIONS, cache_bytes=1 << 23)
    proxies = [ip_network("127.0.0.1")]
    with (
        serving(tiny_base("llama"), {}, options=options, max_requests=1, trusted_proxies=proxies) as live,
        ThreadPoolExecutor(1) as pool,
    ):
        engine, asked, answered = live.engine, [], []
        first = pool.submit(live.post, "/v1/completions", flood, {"X-Forwarded-For": "1.1.1.1"})
        while engine.scheduler.running < options.max_running or engine.scheduler.waiting < 1024 - options.max_running:
            time.sleep(0.005)
        assert live.post("/v1/completions", short, {"X-Forwarded-For": "1.1.1.1"}).status == 429
        add, finished = engine.scheduler.add, engine.metrics.finished
        monkeypatch.setattr(engine.scheduler, "add", lambda one: (asked.append(engine.steps), add(one)))
        monkeypatch.setattr(engine.metrics, "finished", lambda *of: (answered.append(engine.steps), finished(*of)))
        for number in range(3):
            asked.clear(), answered.clear()
            assert live.post("/v1/completions", short, {"X-Forwarded-For": f"2.2.2.{number}"}).status == 200
            assert len(asked) == 1 and answered[0] - asked[0] <= 2
        assert not first.done() and engine.scheduler.waiting > 500
        engine.close()
        assert first.result().status == 503
