"""Numbers for Prometheus: what each adapter serves, and how the engine and its memory are doing.

Each of the adapters that are asked for most has series of its own, the others share those of "other" (operations/top_names.py).
"""

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from graft.server.keys.usage_counts import UsageCounts
from graft.server.operations.families import counter
from graft.server.operations.top_names import OTHER, TopNames
from graft.server.served_version import UNPLACED, Served

MOST_NAMED = 100  # adapters with series of their own
BASE = "base"  # the label of requests without an adapter
_OWN = {BASE, UNPLACED.name, OTHER}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BOUNDS = [*map(str, map(float, _SECONDS)), "+Inf"]


@dataclass(slots=True)
class Durations:
    """How many of each length there were."""

    counts: list[int] = field(default_factory=lambda: [0] * len(_BOUNDS))
    total_s: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total_s += seconds

    def add(self, other: "Durations") -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total_s += other.total_s

    def buckets(self) -> list[tuple[str, float]]:
        """Bound -> how many are not above it."""
        seen = 0
        return [(bound, seen := seen + count) for bound, count in zip(_BOUNDS, self.counts, strict=True)]


@dataclass(slots=True)
class Series:
    """Of one label."""

    ttft: Durations = field(default_factory=Durations)
    itl: Durations = field(default_factory=Durations)
    load: Durations = field(default_factory=Durations)
    tokens: int = 0
    prompt: int = 0
    cached: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Series") -> None:
        for mine, its in ((self.ttft, other.ttft), (self.itl, other.itl), (self.load, other.load)):
            mine.add(its)
        self.tokens += other.tokens
        self.prompt += other.prompt
        self.cached += other.cached
        self.outcomes += other.outcomes


_DURATIONS: dict[str, tuple[str, Callable[[Series], Durations]]] = {
    "graft_time_to_first_token_seconds": ("Submission to first token", lambda one: one.ttft),
    "graft_inter_token_seconds": ("Between a request's tokens", lambda one: one.itl),
    "graft_adapter_load_seconds": ("Disk to host memory", lambda one: one.load),
}
_COUNTS: dict[str, tuple[str, Callable[[Series], int]]] = {
    "graft_generated_tokens": ("Tokens drawn", lambda one: one.tokens),
    "graft_prompt_tokens": ("Prompt tokens of finished requests", lambda one: one.prompt),
    "graft_cached_prompt_tokens": ("Prompt tokens found in the KV cache", lambda one: one.cached),
}


class Metrics(Collector):
    """One engine's numbers. Safe for many threads."""

    def __init__(self, most_named: int = MOST_NAMED) -> None:
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._names = TopNames(most_named, OTHER)
        self._series: dict[str, Series] = {}
        self._answers: Counter[tuple[str, str]] = Counter()
        self.usage = UsageCounts()
        self._sources: list[Callable[[], Iterable[Metric]]] = [self.usage.read]
        self._registry.register(self)

    def source(self, read: Callable[[], Iterable[Metric]]) -> None:
        """Have numbers read where they are, whenever somebody asks."""
        self._sources.append(read)

    def token(self, served: Served, ttft_s: float | None, gap_s: float) -> None:
        with self._lock:
            series = self._of(served.name)
            series.tokens += 1
            if ttft_s is None:
                series.itl.observe(gap_s)
            else:
                series.ttft.observe(ttft_s)

    def finished(self, served: Served, reason: str, prompt: int, cached: int) -> None:
        with self._lock:
            self._count(served.name)
            series = self._of(served.name)
            series.outcomes[reason] += 1
            series.prompt += prompt
            series.cached += cached

    def failed(self, served: Served, code: str) -> None:
        with self._lock:
            self._count(served.name)
            self._of(served.name).outcomes[code] += 1

    def answered(self, route: str, status: int) -> None:
        with self._lock:
            self._answers[route, str(status)] += 1

    def loaded(self, name: str, seconds: float) -> None:
        with self._lock:
            self._of(name).load.observe(seconds)

    def totals(self) -> tuple[int, int]:
        """Prompt tokens of finished requests, and tokens drawn."""
        with self._lock:
            return sum(one.prompt for one in self._series.values()), sum(one.tokens for one in self._series.values())

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            for name in self._names.rank():
                if (left := self._series.pop(name, None)) is not None:
                    self._series.setdefault(OTHER, Series()).add(left)
            own = [*self._by_adapter()]
        yield from own
        for read in self._sources:
            yield from read()

    def _by_adapter(self) -> Iterator[Metric]:
        for name, (text, durations) in _DURATIONS.items():
            lengths = HistogramMetricFamily(name, text, labels=["adapter"])
            for label, series in self._series.items():
                lengths.add_metric([label], durations(series).buckets(), durations(series).total_s)
            yield lengths
        for name, (text, count) in _COUNTS.items():
            yield counter(name, text, ["adapter"], (([label], count(one)) for label, one in self._series.items()))
        outcomes = (([label, code], n) for label, one in self._series.items() for code, n in one.outcomes.items())
        yield counter("graft_requests", "Requests by outcome", ["adapter", "outcome"], outcomes)
        answers = (([*which], n) for which, n in self._answers.items())
        yield counter("graft_http_answers", "HTTP answers", ["route", "status"], answers)

    def _of(self, name: str | None) -> Series:
        label = name if (name := name or BASE) in _OWN else self._names.label(name)
        return self._series.get(label) or self._series.setdefault(label, Series())

    def _count(self, name: str | None) -> None:
        if name is not None and name not in _OWN:
            self._names.count(name)
