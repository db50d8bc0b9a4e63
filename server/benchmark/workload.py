"""Measuring: random prompts through an engine in this process or a server elsewhere, timed token by token.

A `Target` (targets.py) serves requests and says when each token came; a `Workload` says which requests there are and when they
arrive. Knows no terminal.
"""

import itertools
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from graft.hub.machine.cpu_load import Load
from graft.server.sampling.params import GREEDY, Sampling

_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Workload:
    """`rate` requests a second at random times (Poisson), or `concurrency` of them under way, or all at once."""

    requests: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 64
    concurrency: int | None = None
    rate: float | None = None
    zipf: float | None = None  # adapters by Zipf's law with this exponent instead of in turn
    seed: int = 1234
    sampling: Sampling = GREEDY  # where it has a seed, request i's is i more

    @property
    def output_tokens(self) -> int:
        return self.requests * self.new_tokens


@dataclass(frozen=True)
class BenchRequest:
    """One request: `at` seconds after the start."""

    prompt: tuple[int, ...]
    model: str | None
    new_tokens: int
    at: float = 0.0
    sampling: Sampling = GREEDY


@dataclass(frozen=True)
class Timing:
    """When a request was sent and when its tokens came, by one clock."""

    sent: float
    tokens: tuple[float, ...]


class Target(Protocol):
    def run(self, jobs: Sequence[BenchRequest], at_once: int) -> list[Timing]:
        """Serve jobs, EOS ignored: each when its time has come, at most `at_once` under way.

        Raises the first GraftError.
        """
        ...


class RequestDraw:
    """The rounds of a workload: random ids, no two prompts equal, so that nothing is found in a prefix cache."""

    def __init__(self, work: Workload, ids: Sequence[int], models: Sequence[str | None]):
        self._work, self._ids, self._models = work, ids, models
        self._random = random.Random(work.seed)
        self._seen: set[tuple[int, ...]] = set()

    def round(self) -> list[BenchRequest]:
        work, at = self._work, 0.0
        jobs = []
        for i in range(work.requests):
            at += self._random.expovariate(work.rate) if work.rate else 0.0
            jobs.append(BenchRequest(self._prompt(), self._model(i), work.new_tokens, at, self._sampling(i)))
        return jobs

    def _prompt(self) -> tuple[int, ...]:
        while True:
            prompt = tuple(self._random.choices(self._ids, k=self._work.prompt_tokens))
            if prompt[:16] not in self._seen:  # one cache block: a shorter common beginning is never shared
                self._seen.add(prompt[:16])
                return prompt

    def _sampling(self, i: int) -> Sampling:
        sampling = self._work.sampling
        return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + i)

    def _model(self, i: int) -> str | None:
        if self._work.zipf is None:
            return self._models[i % len(self._models)]
        weights = [1 / rank**self._work.zipf for rank in range(1, len(self._models) + 1)]
        return self._random.choices(self._models, weights)[0]


def measure(
    target: Target,
    work: Workload,
    ids: Sequence[int],
    models: Sequence[str | None],
    *,
    repeats: int = 3,
    beside: Callable[[threading.Event], None] | None = None,
) -> dict[str, object]:
    """One warm-up round, then `repeats` measured ones; rates are medians over rounds, latencies are over all.

    `beside(stop)` runs on a thread of its own during the measured rounds, until `stop` is set.
    """
    draw = RequestDraw(work, ids, models)
    began = time.perf_counter()
    at_once = work.concurrency or work.requests
    target.run(draw.round(), at_once)
    warm_up = time.perf_counter() - began
    load, stop = Load(), threading.Event()
    timings, seconds = [], []
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(beside, stop) if beside else None
        try:
            for _ in range(repeats):
                jobs = draw.round()
                began = time.perf_counter()
                served = target.run(jobs, at_once)
                seconds.append(max(timing.tokens[-1] for timing in served) - began)
                timings += served
            cores = load.cores()
        finally:
            stop.set()
        if other:
            other.result()
    return {
        "tokens_per_s": round(work.output_tokens / statistics.median(seconds), 2),
        "seconds": [round(value, 4) for value in seconds],
        "warm_up_s": round(warm_up, 3),
        **latencies(timings),
        **cores.to_dict(),
    }


def latencies(timings: Sequence[Timing]) -> dict[str, dict[str, float]]:
    """Time to first token from when a request was sent, and times between tokens, in milliseconds."""
    first = [timing.tokens[0] - timing.sent for timing in timings]
    gaps = [later - earlier for timing in timings for earlier, later in itertools.pairwise(timing.tokens)]
    return {"ttft_ms": percentiles(first), **({"itl_ms": percentiles(gaps)} if gaps else {})}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Seconds -> milliseconds at the usual ranks (nearest rank)."""
    ordered = sorted(seconds)
    return {name: round(1e3 * ordered[math.ceil(len(ordered) * q) - 1], 2) for name, q in _PERCENTILES.items()}
