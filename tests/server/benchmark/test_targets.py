"""What `graft bench` measures: a server's tokens, however many come in an event; a URL that can't be one is refused in words."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from graft.hub.errors import GraftError
from graft.server.benchmark import targets
from graft.server.benchmark.targets import UrlTarget
from graft.server.benchmark.workload import BenchRequest, RequestDraw, Workload
from graft.server.sampling.params import GREEDY, Sampling


@pytest.mark.parametrize("url", ["localhost:8000", "nowhere", "http://localhost:99999", "http://[::1", ""])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(GraftError, match="no server's URL"):
        UrlTarget(url)


def test_requests_are_drawn_as_they_are_asked_for():
    """Each request has a seed of its own, and a server is asked for what an engine is."""
    work = Workload(requests=3, prompt_tokens=16, new_tokens=2, sampling=Sampling(top_p=0.9, seed=7, logprobs=2))
    jobs = RequestDraw(work, range(2, 90), [None]).round()
    assert [job.sampling.seed for job in jobs] == [7, 8, 9]
    assert targets._sampling_fields(jobs[1].sampling) == {"temperature": 1.0, "top_p": 0.9, "seed": 8, "logprobs": 2}
    assert targets._sampling_fields(GREEDY) == {"temperature": 0}


@contextmanager
def server_of(events):
    """Answers each request with these events, one a tick of the clock that is given beside its URL and what it was asked."""
    asked, now = [], [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(b'{"data": [{"id": "base"}]}')

        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            lines = [f"data: {json.dumps(event)}\n\n" for event in events]
            self.answer("".join([*lines, "data: [DONE]\n\n"]).encode())

        def answer(self, body):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    def clock():
        now[0] += 1
        return now[0]

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked, clock
        server.shutdown()


def event(tokens, choices=1):
    return {"choices": [{"text": "a"}] * choices, "usage": tokens and {"completion_tokens": tokens}}


@pytest.mark.parametrize(
    ("events", "times"),
    [
        pytest.param([event(1), event(2), event(3), event(3, 0)], [2, 3, 4], id="one in each event"),
        pytest.param([event(2), event(3), event(3), event(3, 0)], [2, 2, 3], id="two in one, none in another"),
        pytest.param([event(3), event(3, 0)], [2, 2, 2], id="all in one"),
        pytest.param([event(None)] * 4 + [event(3, 0)], [2, 3, 4], id="usage at the end only"),
        pytest.param([event(None)] * 2 + [event(3, 0)], [2, 3], id="usage at the end only, two in one event"),
    ],
)
def test_tokens_of_a_server_are_timed_not_events(monkeypatch, events, times):
    with server_of(events) as (url, asked, clock):
        target = UrlTarget(url)
        monkeypatch.setattr(targets, "time", SimpleNamespace(perf_counter=clock))
        timing = target._time_request(BenchRequest((1,), None, 3))
    assert asked[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (timing.sent, list(timing.tokens)) == (1, times)
