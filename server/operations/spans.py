"""A span of OpenTelemetry's for each request, sent to where its environment variables say: the extra `otel`. Torch-free.

Names are those of its conventions for HTTP servers and generative models; what they have no name for is graft's own.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from graft.server.operations.request_log import LOG, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FIRST_TOKEN = "graft.first_token"  # an event of a span
_CLOSE_S = 2.0  # at the end, for what has not been sent: the exporter by itself tries for ten seconds a batch
_OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}  # by route


def begin_spans(say: Callable[[str], None] = lambda line: None) -> None:
    """Send a span for each line of the request log from now on, where the environment names a collector."""
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if named is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        say(f"{named} is set, and no spans are sent: they need `pip install grafthub[otel]`.")
        return
    given = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "graft"}
    try:
        exporter = OTLPSpanExporter()
        provider = TracerProvider(resource=Resource.create(given), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ValueError as error:
        say(f"no spans are sent, for a variable of OpenTelemetry's (OTEL_...) has no value that it could have: {error}")
        return
    LOG.addHandler(SpanHandler(provider, exporter.shutdown))
    say(f"a span for each request goes to {os.environ[named]}")


class SpanHandler(logging.Handler):
    """Of the request log. Closed by `logging.shutdown`, which Python calls at its end."""

    def __init__(self, provider: "TracerProvider", give_up: Callable[[], None]):
        """`give_up`: what is being sent, and what has not been sent yet."""
        super().__init__()
        self._provider = provider
        self._give_up = give_up
        self._tracer = provider.get_tracer("graft")

    def emit(self, record: logging.LogRecord) -> None:
        asked = vars(record).get("request")
        if isinstance(asked, RequestRecord):
            self._send(asked)

    def close(self) -> None:
        """Waits until all has been sent, _CLOSE_S at most."""
        late = threading.Timer(_CLOSE_S, self._give_up)
        late.start()
        self._provider.shutdown()
        late.cancel()
        super().close()

    def _send(self, asked: RequestRecord) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        now = time.time_ns()
        began = now - round((time.monotonic() - asked.began) * 1e9)
        span = self._tracer.start_span(
            f"{asked.method} {asked.route}",
            TraceContextTextMapPropagator().extract({"traceparent": asked.traceparent}),
            SpanKind.SERVER,
            attributes=attributes(asked),
            start_time=began,
        )
        if asked.first_token_s is not None:
            span.add_event(FIRST_TOKEN, timestamp=began + round(asked.first_token_s * 1e9))
        if asked.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now)


def attributes(asked: RequestRecord) -> "dict[str, AttributeValue]":
    """What there is to say of a request, by OpenTelemetry's names."""
    told: dict[str, AttributeValue | None] = {
        "http.request.method": asked.method,
        "http.route": asked.route,
        "http.response.status_code": asked.status,
        "client.address": asked.client,
        "error.type": asked.error,
        "gen_ai.operation.name": _OPERATIONS.get(asked.route),
        "gen_ai.request.model": asked.model,
        "gen_ai.usage.input_tokens": asked.prompt_tokens,
        "gen_ai.usage.output_tokens": asked.completion_tokens,
        "gen_ai.response.finish_reasons": tuple(asked.finish.split(",")) if asked.finish else None,
        "graft.request.id": asked.id,
        "graft.key": asked.key,
        "graft.cached_tokens": asked.cached_tokens,
        "graft.adapter.name": asked.served.name,
        "graft.adapter.digest": asked.served.digest,
        "graft.adapter.revision": asked.served.revision,
    }
    return {name: value for name, value in told.items() if value not in (None, "", 0)}
