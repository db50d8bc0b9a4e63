"""The load client of what is measured over HTTP, and how the tables judge what it saw."""

import argparse
import json
import socket
import socketserver
import threading

import pytest

STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n",
    b'data: {"choices": [{"text": "a"}]}\n\n',
    b'data: {"choices": [{"text": ""}]}\n\ndata: {"choices": [{"text": "bc"}]}\n\n',
    b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\ndata: [DONE]\n\n',
)


def chunked(parts):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


ANSWERS = {
    "whole": STREAM[0] % b"" + b"".join(STREAM[1:]),
    "chunked": STREAM[0] % b"Transfer-Encoding: chunked\r\n" + chunked(STREAM[1:]),
    "no text": STREAM[0] % b"" + STREAM[3],
    "cut off": STREAM[0] % b"" + b"".join(STREAM[1:3]),
    "an error": STREAM[0] % b"" + STREAM[1] + b'data: {"error": {"code": "closed"}}\n\n',
    "refused": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 2\r\n\r\n{}",
    "refused for ever": b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}",
    "nothing": b"",
}


@pytest.fixture
def saying():
    """The address of a server that answers each request with what its model names, in pieces that end anywhere."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            lines = list(iter(self.rfile.readline, b"\r\n"))
            length = next(int(line.split()[1]) for line in lines if line.startswith(b"Content-Length:"))
            answer = ANSWERS[json.loads(self.rfile.read(length))["model"]]
            for start in range(0, len(answer), 7):
                self.wfile.write(answer[start : start + 7])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


def test_the_load_client_tells_whole_answers_from_all_others(saying):
    from benchmarks.lib.http_load import Ask, Client

    client = Client(saying).at_their_times([Ask(name, [1], 3) for name in ANSWERS])
    assert {ask.model for ask, _ in client.whole} == {"whole", "chunked", "no text"}
    assert [ask.model for ask, answer in client.asked if answer.refused] == ["refused"]
    assert len(client.broken) == len(ANSWERS) - 4
    found = client.figures()
    assert (found["requests"], found["refused"], found["errors"], found["tokens_an_event"]) == (8, 1, 4, 2.25)
    assert "closed" in " ".join(client.broken)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = gone.getsockname()
    nobody = Client(address).so_many_at_once(iter([Ask("whole", [1], 3)]), 1)
    assert nobody.broken and nobody.asked[0][1].nobody


def test_closed_loops_keep_so_many_under_way_and_end_with_their_asks(saying):
    from benchmarks.lib.http_load import Ask, Client

    client = Client(saying).so_many_at_once((Ask("whole", [1], 3) for _ in range(20)), 4)
    assert len(client.whole) == 20 and client.figures()["ttft_ms"]["p95"] > 0


def test_a_trace_is_the_same_for_all_and_no_cache_knows_it():
    from benchmarks.lib.recorded_trace import TRACE, Draw

    draw = Draw(TRACE, ["a", "b"], (10, 1000))
    first, again, other = (draw.trace(1, 300, part) for part in ("one", "one", "another"))
    assert first == again
    shapes = [[(ask.at, len(ask.prompt), ask.tokens, ask.model) for ask in asks] for asks in (first, other)]
    assert shapes[0] == shapes[1] and len({tuple(ask.prompt[:16]) for ask in first + other}) == 600
    assert 32 <= min(len(ask.prompt) for ask in first) < 60 < 900 < max(len(ask.prompt) for ask in first) <= 1024
    assert 16 <= min(ask.tokens for ask in first) < 30 < 230 < max(ask.tokens for ask in first) <= 256
    assert 0.8 < first[-1].at / 300 < 1.2


def test_a_trace_is_replayed_at_rates_that_follow_from_throughputs():
    from benchmarks.tables import traces

    def throughput(rate):
        return [{"round": 1, "requests_per_s": 99.0}, {"round": 2, "requests_per_s": rate}]

    samples = {"graft throughput": throughput(4.0), "vllm throughput": throughput(2.0)}
    samples["llama throughput"] = [{"round": 2, "error": "gone"}]
    assert traces.rates_of(samples, 2) == pytest.approx({"slower": 1.4, "graft": 2.8})
    assert traces.rates_of({"vllm throughput": throughput(2.0)}, 2) == {}

    def taken(ms):
        times = {time: {"p50": ms, "p95": ms} for time in traces.TIMES}
        return [{"round": 2, "slower": times | {"errors": 0}, "graft": times | {"errors": 1, "rate": 2.8}}]

    samples |= {"graft": taken(10.0), "vllm": taken(15.0)}
    assert traces.missed(samples) == ["graft: 1 errors", "vllm: 1 errors", "llama: no figure"]
    samples["vllm"] = taken(9.0)
    assert len(traces.missed(samples)) == 3 + 8 and "p95" in traces.missed(samples)[1]


def test_what_is_under_load_is_held_against_its_bars():
    from benchmarks.lib import report
    from benchmarks.tables import over_http

    crowd = {
        "round": 1,
        "errors": 0,
        "refused": 0,
        "lost_processes": 0,
        "growth": 0.01,
        "requests": 9,
        "tokens_per_s": 1.0,
    }
    ranks = {"p50": 1.0, "p95": 2.0, "p99": 3.0}
    process = {"name": "the engine's process", "first": 1e9, "last": 1.01e9, "growth": 0.01}
    crowd |= {"ttft_ms": ranks, "itl_ms": ranks, "processes": [process], "client_cores": 0.1, "other_cores": 0.0}
    samples = {"crowd": [crowd], "restarts": [{"round": 1, "error": "no port"}]}
    assert over_http.missed({"crowd": [crowd]}) == []
    assert over_http.missed({"crowd": [crowd | {"growth": 0.04}]}) == ["crowd: growth 0.04"]
    assert len(over_http.missed(samples)) == 2, "no figure is no pass"
    text = over_http.markdown(
        report.envelope("over_http", argparse.Namespace(threads=1), seconds=600.0, samples=samples)
    )
    assert "the engine's process 1,000, 1,010" in text and "No figure: no port" in text
