"""What was used, by key and adapter, as numbers for Prometheus. Torch-free."""

import threading

from prometheus_client import CollectorRegistry, Counter

from graft.server.keys.usage import Usage

MOST_PAIRS = 1000  # of a key and an adapter; the rest is counted together
OTHER = "other"
BASE = "base"  # the label of requests without an adapter
NO_KEY = "none"  # the label where nobody is asked for a key


class UsageCounts:
    """Counts by key and adapter, of the first MOST_PAIRS by themselves. Safe for many threads."""

    def __init__(self, registry: CollectorRegistry):
        by = ("key", "adapter")
        self._requests = Counter("graft_key_requests", "Requests of a key", (*by, "end"), registry=registry)
        self._tokens = Counter("graft_key_tokens", "Tokens of a key", (*by, "kind"), registry=registry)
        self._pairs: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def add(self, usage: Usage) -> None:
        key, adapter = self._labels(usage.key or NO_KEY, usage.adapter or BASE)
        self._requests.labels(key, adapter, "cut off" if usage.cut_off else "whole").inc()
        self._tokens.labels(key, adapter, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(key, adapter, "completion").inc(usage.completion_tokens)

    def _labels(self, *pair: str) -> tuple[str, str]:
        key, adapter = pair
        with self._lock:
            if (key, adapter) not in self._pairs:
                if len(self._pairs) >= MOST_PAIRS:
                    return OTHER, OTHER
                self._pairs.add((key, adapter))
        return key, adapter
