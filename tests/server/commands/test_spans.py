"""Spans of requests, sent to a collector by whichever process has answered, and all of them before it ends."""

import json
import signal
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from graft.server.operations.request_log import LOG, RequestRecord
from graft.server.operations.spans import FIRST_TOKEN, SpanHandler, begin_spans
from graft.server.served_version import Served
from tests.conftest import tiny_base
from tests.server.commands.test_serve import process, url_of
from tests.server.conftest import write_folder

TRACE, SPAN = "ab" * 16, "cd" * 8


@contextmanager
def collector():
    """An OTLP collector's address, and the (service, span) pairs that it has been sent."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            for one in sent.resource_spans:
                [service] = [each.value.string_value for each in one.resource.attributes if each.key == "service.name"]
                got.extend((service, span) for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def spans():
    """Ends what was begun."""
    before = list(LOG.handlers)
    yield
    for handler in [one for one in LOG.handlers if one not in before]:
        LOG.removeHandler(handler)
        handler.close()


def test_a_variable_without_sense_is_said_and_ends_nothing(spans, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    said: list[str] = []
    before = list(LOG.handlers)
    begin_spans(said.append)
    assert "no spans are sent" in said[0] and "positive" in said[0] and LOG.handlers == before


def values(span) -> dict:
    return {
        each.key: each.value.int_value
        or each.value.string_value
        or [one.string_value for one in each.value.array_value.values]
        for each in span.attributes
    }


@pytest.mark.parametrize("processes", ["1", pytest.param("0", marks=pytest.mark.slow)])
def test_a_server_that_ends_has_sent_a_span_for_each_request(tmp_path, monkeypatch, processes):
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    write_folder(tmp_path / "lora", "lora", base)
    with collector() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        options = ["--port", "0", "--adapter", "mine=lora", "--kv-bytes", "2M", "--http-processes", processes]
        with process(tmp_path, *options) as started:
            url = url_of(started)
            body = {"model": "mine", "prompt": "abc", "max_tokens": 5, "ignore_eos": True, "stream": True}
            headers = {"Content-Type": "application/json", "traceparent": f"00-{TRACE}-{SPAN}-01"}
            asked = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
            urllib.request.urlopen(asked, timeout=60).read()
            urllib.request.urlopen(f"{url}/v1/models", timeout=60).read()
            started.send_signal(signal.SIGTERM)
            assert started.wait(30) == 0
    assert {service for service, _ in got} == {"graft"}
    [span] = [span for _, span in got if span.name == "POST /v1/completions"]
    assert [span.name for _, span in got if span.name != "POST /v1/completions"] == ["GET /v1/models"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    told = values(span)
    assert told["gen_ai.usage.input_tokens"] == 3 and told["gen_ai.usage.output_tokens"] == 5
    assert told["gen_ai.request.model"] == told["graft.adapter.name"] == "mine"
    assert told["gen_ai.response.finish_reasons"] == ["length"] and len(told["graft.adapter.digest"]) == 64
    [event] = span.events
    assert event.name == FIRST_TOKEN
    assert span.start_time_unix_nano < event.time_unix_nano <= span.end_time_unix_nano


def test_a_span_says_what_failed_and_a_strange_parent_is_none(spans, monkeypatch):
    with collector() as (address, got):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{address}/v1/traces")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        begin_spans()
        LOG.setLevel("INFO")
        parent = f"00-{'z' * 32}-{SPAN}-01"
        failed = RequestRecord("one", "POST", "/v1/completions", "1.2.3.4", parent, served=Served("mine"), status=500)
        failed.error = "internal_error"
        failed.write()
        [handler] = [one for one in LOG.handlers if isinstance(one, SpanHandler)]
        handler.close()
    [(service, span)] = got
    assert service == "ours" and not span.parent_span_id and span.status.code == 2
    assert values(span)["error.type"] == "internal_error" and values(span)["http.response.status_code"] == 500


def test_nothing_is_sent_where_nobody_is_named_or_the_package_is_missing(spans, monkeypatch):
    said: list[str] = []
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    begin_spans(said.append)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    begin_spans(said.append)
    assert not said
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    begin_spans(said.append)
    assert "pip install grafthub[otel]" in said[0] and not any(isinstance(one, SpanHandler) for one in LOG.handlers)


def test_a_collector_that_is_away_holds_nobody_up(spans, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    begin_spans()
    LOG.setLevel("INFO")
    began = time.monotonic()
    for number in range(5000):  # more than its queue takes
        RequestRecord(str(number), "GET", "/v1/models", "1.2.3.4", status=200).write()
    [handler] = [one for one in LOG.handlers if isinstance(one, SpanHandler)]
    LOG.removeHandler(handler)
    handler.close()
    assert time.monotonic() - began < 15
