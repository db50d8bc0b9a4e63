"""Cost over base size: measured on random bases of three sizes, projected from the machine's limits to a larger one.

    python -m benchmarks.tables.sizes [--dtype float32]

A projection is the limit that roofline.py computes for that size at the share of it that the largest measured size
reached. Writes results/sizes.json and results/sizes.md (sizes-float32.* in float32).
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lib import adapters, harness, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import CACHE, System
from benchmarks.lib.shapes import SIZES, made
from benchmarks.peers import systems

RANK = 16
MEASURED = ("0.135", "0.36", "1.7")
ONCE = ("--repeats", "1")  # minutes a pass on the largest; the rounds repeat
KINDS = {"graft base": "base", "graft 32 LoRAs": "adapters"}  # row: which of roofline.py's limits is its


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    options = harness.parsed(parser)
    name, work = harness.named("sizes", options.dtype), Workload(dtype=options.dtype)
    rows = harness.chosen(all_rows(options, work), options.only)
    before = harness.earlier(options, name)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope(name, options, workload=asdict(work), samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
    print((options.out / f"{name}.md").read_text())


def all_rows(options: argparse.Namespace, work: Workload) -> list[System]:
    """Rows are named LINE @SIZE."""
    rows = []
    for name, size in SIZES.items():
        lora_weights = work.requests * size.shape.lora_weights(RANK)
        command = ("-m", "benchmarks.tables.roofline", "--size", name, "--workload", work.to_json())
        rows.append(System(f"limit @{name}", (sys.executable, *command, "--adapter-weights", str(lora_weights))))
    for name in MEASURED:
        base = made(SIZES[name], Path(options.base), CACHE)
        loras = adapters.make([f"lora-r{RANK}"], work.requests, base, CACHE)
        rows.append(systems.graft(f"graft base @{name}", str(base), work, (), *ONCE))
        rows.append(systems.graft(f"graft 32 LoRAs @{name}", str(base), work, loras, *ONCE))
    return rows


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows: a line a size and kind."""
    lines = [_line(result["samples"], row, size) for size in SIZES for row in KINDS]
    return report.table(["base, weights in 1e9", "row", "realistic limit", "tokens/s", "share of the limit"], lines)


def _line(samples: harness.Samples, row: str, size: str) -> list[str]:
    limit = limit_of(samples, row, size)
    if size in MEASURED:
        speed, share = speed_of(samples, row, size), share_of(samples, row, size)
        return [size, row, report.figure(limit), f"**{report.figure(speed)}**", report.figure(share)]
    share = share_of(samples, row, MEASURED[-1])
    projected = limit * share if limit and share else None
    return [size, row, report.figure(limit), f"{report.figure(projected)} (projected)", "as one size smaller"]


def speed_of(samples: harness.Samples, row: str, size: str) -> float | None:
    return harness.median_of(samples.get(f"{row} @{size}", []), "tokens_per_s")


def limit_of(samples: harness.Samples, row: str, size: str) -> float | None:
    return harness.median_of(samples.get(f"limit @{size}", []), f"{KINDS[row]}.realistic")


def share_of(samples: harness.Samples, row: str, size: str) -> float | None:
    """Of the machine's realistic limit."""
    limit, speed = limit_of(samples, row, size), speed_of(samples, row, size)
    return speed / limit if limit and speed else None


def markdown(result: dict[str, Any]) -> str:
    work = Workload(**result["workload"])
    return "\n".join(
        [
            report.heading(result, "Scale: cost over the size of the base"),
            f"{work.requests} requests of {work.prompt_tokens} prompt and {work.new_tokens} new tokens, {work.dtype}, LoRA r={RANK} on "
            "all projections, random weights in the shapes of benchmarks/lib/shapes.py; output tokens a second. Lines "
            "marked projected are arithmetic, not a run: the limit of that size (rates measured here at its widest "
            f"product) times the share of its limit that the {MEASURED[-1]} base reached.",
            "",
            summary(result),
        ]
    )


if __name__ == "__main__":
    main()
