"""Requests as they come to a server: one trace a seed, the same for every system, its times stretched to any rate.

Standard library only. Lengths are log-uniform, times Poisson, adapters uniform; no two prompts have a beginning in common.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lib.http_load import Ask


@dataclass(frozen=True)
class Lengths:
    """Tokens, at least and at most."""

    prompt: tuple[int, int]
    answer: tuple[int, int]

    @property
    def longest(self) -> int:
        return self.prompt[1] + self.answer[1]


TRACE = Lengths((32, 1024), (16, 256))


@dataclass(frozen=True)
class Draw:
    """Draws requests. `ids`: those of prompts, from and to; `models`: the names that are asked for."""

    lengths: Lengths
    models: Sequence[str]
    ids: tuple[int, int]
    fields: Sequence[Mapping[str, float]] = field(default=({},))  # of the sampling, one of them a request

    def trace(self, seed: int, requests: int, part: str) -> list[Ask]:
        """At a rate of one a second. `part`: of a measurement; others have other ids, so that no cache knows them."""
        draw, clock, asks = random.Random(seed), 0.0, []
        for number in range(requests):
            clock += draw.expovariate(1.0)
            asks.append(self._one(draw, random.Random(f"{seed} {part} {number}"), clock))
        return asks

    def endless(self, seed: int) -> Iterator[Ask]:
        draw = random.Random(seed)
        while True:
            yield self._one(draw, draw, 0.0)

    def _one(self, draw: random.Random, of_ids: random.Random, at: float) -> Ask:
        prompt, answer = (_log_uniform(draw, *bounds) for bounds in (self.lengths.prompt, self.lengths.answer))
        model, fields = draw.choice(self.models), draw.choice(self.fields)
        return Ask(model, [of_ids.randrange(*self.ids) for _ in range(prompt)], answer, at, dict(fields))


def ids_of(base: Path) -> tuple[int, int]:
    """Ids of prompts, clear of special tokens, which stand at a vocabulary's beginning or end."""
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    return min(1000, vocabulary // 8), min(40_000, vocabulary * 7 // 8)


def _log_uniform(draw: random.Random, least: int, most: int) -> int:
    return round(math.exp(draw.uniform(math.log(least), math.log(most))))
