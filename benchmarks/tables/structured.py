"""What schemas cost: 32 different ones against none, in turns; free requests beside them; the masks themselves.

    python -m benchmarks.tables.structured [--dtype float32]

Writes results/structured.json and results/structured.md (structured-float32.* in float32).
"""

import argparse
import statistics
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import System
from benchmarks.own.structured import WHAT

SHARE, SHARE_GOAL = 0.95, 1.0  # of the tokens a second without schemas, at least
MOST_ADDED_MS = 5.0  # to the gap between two tokens of a free request, at the median
MASKS_MS = {"p50": 3.0, "p99": 10.0}  # of 32 rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    options = harness.parsed(parser)
    name, work = harness.named("structured", options.dtype), Workload(dtype=options.dtype)
    rows = harness.chosen([row(options, work, what) for what in WHAT], options.only)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, harness.earlier(options, name)):
        result = report.envelope(name, options, workload=asdict(work), samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / f"{name}.md").read_text())
    if short := missed(result["samples"]):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def row(options: argparse.Namespace, work: Workload, what: str) -> System:
    command = (sys.executable, "-m", "benchmarks.own.structured", "--base", options.base, "--what", what)
    return System(what, (*command, "--workload", work.to_json()))


def added_ms(samples: harness.Samples) -> float | None:
    """By how much the median gap grows beside schemas; None where it was not measured."""
    gaps = [harness.median_of(samples.get(name, []), "itl_ms.p50") for name in ("beside schemas", "beside free")]
    return None if None in gaps else round(gaps[0] - gaps[1], 2)


def missed(samples: harness.Samples) -> list[str]:
    """What is above its bar."""
    added, share, short = added_ms(samples), harness.median_of(samples.get("in turns", []), "share"), []
    if share is not None and share < SHARE:
        short.append(f"schemas leave {share:.2f} of the tokens a second")
    if added is not None and added > MOST_ADDED_MS:
        short.append(f"{added} ms are added to free requests' gaps")
    for name, bar in MASKS_MS.items():
        taken = harness.median_of(samples.get("masks", []), f"masks_ms.{name}")
        if taken is not None and taken > bar:
            short.append(f"masks take {taken} ms ({name})")
    return short


def markdown(result: dict[str, Any]) -> str:
    """Made from the JSON alone."""
    work, samples = Workload(**result["workload"]), result["samples"]
    parts = [
        report.heading(result, "Schemas, beside none"),
        f"{work.requests} requests at once, {work.prompt_tokens} prompt and {work.new_tokens} new tokens each, temperature 1, "
        f"{work.dtype}; every schema another list of records, none of which comes to its end. One engine a round, free and with "
        "schemas in turns.",
        "",
        speeds_table(samples),
        "## Beside and below",
        "",
        times_table(samples),
    ]
    return "\n".join(parts)


def speeds_table(samples: harness.Samples) -> str:
    """Tokens a second, and the share that is left, each the median of the rounds."""
    rounds = samples.get("in turns", [])
    speeds = [report.figure(harness.median_of(rounds, f"tokens_per_s.{what}")) for what in ("free", "schemas")]
    shares = [sample["share"] for sample in rounds]
    spread = f"{min(shares):.2f} to {max(shares):.2f} (n={len(shares)})" if shares else "-"
    share = f"**{statistics.median(shares):.2f}**" if shares else "-"
    header = ["tokens/s, free", "32 different schemas", "share", "min to max", "bar", "goal", "other cores"]
    others = report.figure(harness.median_of(rounds, "other_cores"))
    return report.table(header, [[*speeds, share, spread, SHARE, SHARE_GOAL, others]])


def times_table(samples: harness.Samples) -> str:
    """Milliseconds: medians of the rounds."""
    titles = {
        "gap between tokens of 16 free requests beside 16 free ones": ("beside free", "itl_ms"),
        "the same beside 16 with schemas": ("beside schemas", "itl_ms"),
        "masks of 32 rows": ("masks", "masks_ms"),
        "compiling a schema": ("masks", "compile_ms"),
    }
    lines = [
        [title, *(report.figure(harness.median_of(samples.get(row, []), f"{key}.{rank}")) for rank in ("p50", "p99"))]
        for title, (row, key) in titles.items()
    ]
    lines.append([f"added to free requests' gaps (bar {MOST_ADDED_MS} ms)", report.figure(added_ms(samples)), ""])
    return report.table(["ms", "p50", "p99"], lines)


if __name__ == "__main__":
    main()
