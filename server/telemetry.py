"""Numbers for Prometheus: what each adapter serves, and how the engine and its memory are doing."""

from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from graft.server.keys.usage_counts import UsageCounts
from graft.server.served_version import Served

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BASE = "base"  # the label of requests without an adapter


class Metrics:
    """One engine's numbers. Counters by adapter name; gauges are read when asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        seconds = partial(Histogram, labelnames=("adapter",), registry=self._registry, buckets=_SECONDS)
        count = partial(Counter, labelnames=("adapter",), registry=self._registry)
        self._ttft = seconds("graft_time_to_first_token_seconds", "Submission to first token")
        self._itl = seconds("graft_inter_token_seconds", "Between a request's tokens")
        self._tokens = count("graft_generated_tokens", "Tokens drawn")
        self._prompt = count("graft_prompt_tokens", "Prompt tokens of finished requests")
        self._cached = count("graft_cached_prompt_tokens", "Prompt tokens found in the KV cache")
        self._requests = Counter(
            "graft_requests", "Requests by outcome", labelnames=("adapter", "outcome"), registry=self._registry
        )
        self._loads = seconds("graft_adapter_load_seconds", "Disk to host memory")
        self._answers = Counter(
            "graft_http_answers", "HTTP answers", labelnames=("route", "status"), registry=self._registry
        )
        self.usage = UsageCounts(self._registry)
        self._children: dict[str, tuple[Histogram, Histogram, Counter]] = {}

    def gauges(self, read: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Register gauges: name -> (help, how to read it)."""
        for name, (text, value) in read.items():
            Gauge(name, text, registry=self._registry).set_function(value)

    def token(self, served: Served, ttft_s: float | None, gap_s: float) -> None:
        name = served.name or BASE
        if name not in self._children:  # labels() takes a lock and a dictionary: not for every token
            self._children[name] = (self._ttft.labels(name), self._itl.labels(name), self._tokens.labels(name))
        ttft, itl, tokens = self._children[name]
        tokens.inc()
        if ttft_s is None:
            itl.observe(gap_s)
        else:
            ttft.observe(ttft_s)

    def finished(self, served: Served, reason: str, prompt: int, cached: int) -> None:
        name = served.name or BASE
        self._requests.labels(name, reason).inc()
        self._prompt.labels(name).inc(prompt)
        self._cached.labels(name).inc(cached)

    def failed(self, served: Served, code: str) -> None:
        self._requests.labels(served.name or BASE, code).inc()

    def answered(self, route: str, status: int) -> None:
        self._answers.labels(route, str(status)).inc()

    def loaded(self, name: str, seconds: float) -> None:
        self._loads.labels(name).observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
