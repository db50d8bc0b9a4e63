"""A line for each request: what was asked, of which adapter, what it took and how it ended, whoever wrote its words."""

import json
import logging
import time

import pytest

from graft.server.commands.log_lines import JsonLines
from graft.server.operations.request_log import as_text
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, serving

ASKED = {"model": "mine", "prompt": "abc", "max_tokens": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", base)
    with serving(base, {"mine": folder}) as running:
        yield running


@pytest.fixture
def lines(caplog):
    """Those written so far, as JSON; waits for the first `count`."""
    caplog.set_level(logging.INFO, logger="graft.requests")

    def read(count: int) -> list[dict]:
        end = time.monotonic() + 10
        while len(found := [one for one in caplog.records if one.name == "graft.requests"]) < count:
            assert time.monotonic() < end, found
            time.sleep(0.01)
        return [json.loads(JsonLines().format(one)) for one in found]

    return read


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_told_of_when_it_has_ended(live, lines, stream):
    headers = {"X-Request-Id": "mine-1", "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    reply = live.post("/v1/completions", ASKED | {"stream": stream, "n": 2}, headers)
    (line,) = lines(1)
    assert line["id"] == "mine-1" and line["trace"] == "ab" * 16 and line["client"] == "127.0.0.1"
    assert (line["method"], line["route"], line["status"], line["error"]) == ("POST", "/v1/completions", 200, "")
    assert line["model"] == line["adapter"] == "mine" and line["digest"] == reply.headers["X-Adapter-Digest"]
    assert (line["prompt_tokens"], line["completion_tokens"], line["finish"]) == (3, 10, "length")
    assert 0 < line["first_token_s"] <= line["total_s"] < 10


def test_other_routes_and_errors_are_told_of_and_probes_are_not(live, lines):
    assert live.get("/health").status == live.get("/metrics").status == 200
    late = {"model": "mine", "messages": [{"role": "user", "content": "a"}], "timeout": 1e-9}
    asked = [
        lambda: live.post("/v1/embeddings", {"model": "mine", "input": ["abcd", "ef"]}),
        lambda: live.post("/v1/completions", ASKED | {"model": "no\nbody \x1b[31m"}),
        lambda: live.post("/v1/completions", ASKED | {"n": 0}),
        lambda: live.post("/v1/chat/completions", late),
        lambda: live.get("/nothing%0a200%20OK"),
    ]
    for count, ask in enumerate(asked, start=1):  # a line is written after its reply, so the next may overtake it
        ask()
        told = lines(count)
    embedded, unknown, bad, late, nowhere = told
    assert embedded["prompt_tokens"] == 6 and embedded["status"] == 200 and embedded["adapter"] == "mine"
    assert (unknown["status"], unknown["error"], unknown["model"]) == (404, "model_not_found", "no?body??[31m")
    assert (bad["status"], bad["error"]) == (400, "invalid_request")
    assert (late["status"], late["error"]) == (408, "deadline_exceeded")
    assert (nowhere["status"], nowhere["route"]) == (404, "/nothing?200?OK")


def test_a_stream_that_ends_by_an_error_says_so(live, lines, breaking_soon):
    with breaking_soon(live):
        live.post("/v1/completions", ASKED | {"stream": True, "max_tokens": 200})
    (line,) = lines(1)
    assert (line["status"], line["error"], line["finish"]) == (200, "internal_error", "cancelled")
    assert line["completion_tokens"] > 0


def test_a_line_for_people_says_what_there_is():
    fields = {
        "id": "x",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "digest": "d" * 64,
        "finish": "stop",
    }
    fields |= {"cached_tokens": 0, "error": "", "first_token_s": None, "completion_tokens": 7}
    assert as_text(fields) == f"POST /v1/completions 200 id=x digest={'d' * 12} finish=stop completion_tokens=7"


def test_what_goes_wrong_is_one_line_of_json_too():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord(
            "graft.server", logging.ERROR, "f", 1, "it %s", ("broke",), (ValueError, error, error.__traceback__)
        )
    line = JsonLines().format(record)
    assert "\n" not in line and json.loads(line)["message"] == "it broke" and "two" in json.loads(line)["exception"]
