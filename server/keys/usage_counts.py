"""What was used, by key and adapter, as numbers for Prometheus. Torch-free."""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import Metric

from graft.server.keys.usage import Usage
from graft.server.operations.families import counter
from graft.server.operations.top_names import OTHER, TopNames

MOST_PAIRS = 1000  # of a key and an adapter; the rest is counted together
BASE = "base"  # the label of requests without an adapter
NO_KEY = "none"  # the label where nobody is asked for a key

Pair = tuple[str, str]
"""A key and an adapter."""
_OTHERS: Pair = OTHER, OTHER


@dataclass(slots=True)
class _Used:
    """By one pair. `requests`: how they ended -> how many; `tokens`: their kind -> how many."""

    requests: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, other: "_Used") -> None:
        self.requests.update(other.requests)
        self.tokens.update(other.tokens)


class UsageCounts:
    """Counts by key and adapter, of the pairs that ask most by themselves, `most` of them. Safe for many threads."""

    def __init__(self, most: int = MOST_PAIRS) -> None:
        self._lock = threading.Lock()
        self._pairs = TopNames(most, _OTHERS)
        self._used: dict[Pair, _Used] = {}

    def add(self, usage: Usage) -> None:
        pair = usage.key or NO_KEY, usage.adapter or BASE
        with self._lock:
            self._pairs.count(pair)
            used = self._used.setdefault(self._pairs.label(pair), _Used())
            used.requests["cut off" if usage.cut_off else "whole"] += 1
            used.tokens["prompt"] += usage.prompt_tokens
            used.tokens["completion"] += usage.completion_tokens

    def read(self) -> Iterator[Metric]:
        """What has been used so far."""
        with self._lock:
            for pair in self._pairs.rank():
                if (left := self._used.pop(pair, None)) is not None:
                    self._used.setdefault(_OTHERS, _Used()).add(left)
            used = self._used.items()
            requests = [((*pair, end), count) for pair, one in used for end, count in one.requests.items()]
            tokens = [((*pair, kind), count) for pair, one in used for kind, count in one.tokens.items()]
        yield counter("graft_key_requests", "Requests of a key", ("key", "adapter", "end"), requests)
        yield counter("graft_key_tokens", "Tokens of a key", ("key", "adapter", "kind"), tokens)
