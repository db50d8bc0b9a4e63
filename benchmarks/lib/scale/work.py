"""What a replica's work costs, in the simulator and in the sleeping replicas: figures of committed tables, and which."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import median_of
from benchmarks.lib.report import RESULTS
from graft.server.sizing.costs import Costs, step_seconds

ROWS = (1, 4, 16, 64)
# rank -> share of the adapters. What people publish is small; a few are large. An assumption, and no measurement.
RANKS = {8: 0.4, 16: 0.4, 32: 0.15, 64: 0.05}
USUAL = 16


@dataclass(frozen=True)
class Kind:
    """LoRAs of one rank. `size`: bytes in memory; `load`: seconds until one that lies on the replica's disk can be used."""

    rank: int
    share: float
    size: int
    load: float


@dataclass(frozen=True)
class Work:
    """Seconds, with LoRAs of rank 16: `steps` by rows, `prompt_token`, and what a load takes from steps (`load_work`)."""

    steps: Mapping[int, float]
    prompt_token: float
    load_work: float
    kinds: tuple[Kind, ...]
    sources: tuple[str, ...]

    def step(self, rows: int) -> float:
        return step_seconds(self.steps, rows)

    def request(self, rows: int, prompt: float, new: float) -> float:
        """Seconds of a replica's time that a request takes where `rows` are computed together."""
        return prompt * self.prompt_token + new * self.step(rows) / rows

    @property
    def largest(self) -> int:
        return max(kind.size for kind in self.kinds)

    @property
    def mean(self) -> float:
        return sum(kind.size * kind.share for kind in self.kinds)


def committed(results: Path = RESULTS) -> Work:
    """From scaling.json and churn.json: SmolLM2-135M in bfloat16."""
    scaling, churn = (json.loads((results / f"{name}.json").read_text()) for name in ("scaling", "churn"))
    samples = scaling["samples"]
    return Work(
        steps={rows: _figure(samples, f"batch graft distinct LoRAs @{rows}", "itl_ms.p50") / 1e3 for rows in ROWS},
        prompt_token=_prompt_token(samples),
        load_work=_load_work(churn["samples"]),
        kinds=tuple(_kind(samples, rank, share) for rank, share in RANKS.items()),
        sources=(
            f"steps, prompts, loads and sizes: scaling.json ({_where(scaling)})",
            f"what a load takes from steps: churn.json ({_where(churn)})",
        ),
    )


def measured(of: Mapping[int, Costs]) -> Work:
    """From what `graft plan` measures, by rank."""
    usual = of[USUAL]
    return Work(
        steps=usual.steps,
        prompt_token=usual.prompt_token,
        load_work=usual.load_work,
        kinds=tuple(Kind(rank, share, of[rank].adapter_bytes, of[rank].load) for rank, share in RANKS.items()),
        sources=(f"all: measured {usual.measured}, {usual.base} on {usual.machine}, {usual.runner}",),
    )


def _kind(samples: dict[str, Any], rank: int, share: float) -> Kind:
    """Of 32 adapters of that rank beside none, all 32 loaded at once."""
    row = f"rank graft @{rank}"
    taken = _figure(samples, row, "peak_bytes") - _figure(samples, "context graft base @64", "peak_bytes")
    return Kind(rank, share, round(taken / 32), _figure(samples, row, "adapters_load_s") / 32)


def _prompt_token(samples: dict[str, Any]) -> float:
    """Two lengths of prompts, 32 requests with 64 new tokens each."""
    short, long = (_figure(samples, f"context graft 32 LoRAs @{length}", "tokens_per_s") for length in (64, 256))
    return 64 * (1 / long - 1 / short) / (256 - 64)


def _load_work(samples: dict[str, Any]) -> float:
    """Five loads a second took so much of the steps' time."""
    alone, beside = (_figure(samples, row, "tokens_per_s") for row in ("none loading", "5 cold a second"))
    return (1 - beside / alone) / 5


def _figure(samples: dict[str, Any], row: str, key: str) -> float:
    found = median_of(samples[row], key)
    if found is None:
        raise SystemExit(f"error: no {key} of {row} is kept")
    return float(found)


def _where(result: dict[str, Any]) -> str:
    return f"{result['at'][:10]}, {result['machine']['cores']} cores of {result['machine']['cpu']}"
