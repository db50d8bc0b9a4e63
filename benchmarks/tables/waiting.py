"""The waiting table: what requests wait for that need nothing of what is under way beside them.

    python -m benchmarks.tables.waiting [--dtype float32]          a quarter of an hour; wants a quiet machine

Gaps between tokens while adapters load, first tokens of the base while an adapter finds no room, of local adapters while a hub
hangs, each beside the same undisturbed; and what the decisions cost. Writes results/waiting.json and results/waiting.md
(waiting-float32 there).
"""

import argparse
import sys
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.harness import System

# Row -> (what is measured, the two figures compared, the most their ratio may be)
COMPARED = {
    "loads": ("gap between tokens of 8 streams, while 16 adapters load", "quiet_ms", "loading_ms", 3.0),
    "room": ("first token of the base, while an adapter finds no room", "quiet_ms", "beside_ms", 1.3),
    "hub": ("first token of a cold local adapter, while 6 downloads hang", "quiet_ms", "beside_ms", 1.3),
}
MOST_MS = 0.2  # of a decision, at the 99th percentile
# Row -> (what is measured, the most it may take); None: it goes by a prompt's length.
DECISIONS = {
    "arrive": ("a request comes in, its adapter is brought in or not", MOST_MS),
    "attend": ("who waits for room is looked after", MOST_MS),
    "admit": ("what starts next", MOST_MS),
    "start": ("a request of 512 tokens is admitted: hashed, half of it found, its rows and blocks planned", None),
    "keep": ("a request lets go of an adapter in host memory", MOST_MS),
}


def main() -> None:
    options = arguments()
    name = harness.named("waiting", options.dtype)
    rows = [row(options, what) for what in (*COMPARED, "decisions")]
    before = harness.earlier(options, name)
    for samples in harness.in_turns(
        harness.chosen(rows, options.only), harness.conditions(options), options.threads, before
    ):
        result = report.envelope(name, options, samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / f"{name}.md").read_text())
    if short := missed(result["samples"]):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def row(options: argparse.Namespace, what: str) -> System:
    command = [sys.executable, "-m", "benchmarks.own.waiting", "--base", options.base, "--what", what]
    return System(what, (*command, "--dtype", options.dtype))


def missed(samples: harness.Samples) -> list[str]:
    """What is above its bar."""
    ratios = {what: harness.median_of(samples.get(what, []), "ratio") for what in COMPARED}
    short = [what for what, ratio in ratios.items() if ratio is not None and ratio > COMPARED[what][3]]
    cost = {what: harness.median_of(samples.get("decisions", []), f"{what}_ms.p99") for what in DECISIONS}
    bars = {what: bar for what, (_, bar) in DECISIONS.items() if bar is not None}
    return short + [what for what, bar in bars.items() if (ms := cost[what]) is not None and ms > bar]


def markdown(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            report.heading(result, "Waiting"),
            "99th percentiles of what nothing disturbs, and of the same beside something that it does not need; medians of the rounds.",
            "",
            compared_table(result["samples"]),
            "",
            "## Decisions, at 1,000 adapters on the device and 256 running requests",
            "",
            decisions_table(result["samples"]),
        ]
    )


def compared_table(samples: harness.Samples) -> str:
    lines = []
    for what, (title, quiet, beside, bar) in COMPARED.items():
        taken = samples.get(what, [])
        if (ratio := harness.median_of(taken, "ratio")) is None:
            lines.append([title, "no figure", "", "", ""])
            continue
        figures = [harness.median_of(taken, f"{key}.p99") for key in (quiet, beside)]
        other = max(sample["other_cores"] for sample in taken if "ratio" in sample)
        lines.append(
            [title, *(f"{ms:.1f}" for ms in figures if ms is not None), f"**{ratio:.2f}** (bar {bar})", f"{other:.2f}"]
        )
    return report.table(["", "undisturbed, ms", "beside it, ms", "ratio", "other cores"], lines)


def decisions_table(samples: harness.Samples) -> str:
    lines = []
    for what, (title, bar) in DECISIONS.items():
        p50, p99 = (harness.median_of(samples.get("decisions", []), f"{what}_ms.{rank}") for rank in ("p50", "p99"))
        lines.append(
            [
                title,
                "no figure" if p50 is None else f"{p50:.3f}",
                "" if p99 is None else f"**{p99:.3f}**" + (f" (bar {bar})" if bar else ""),
            ]
        )
    return report.table(["", "p50, ms", "p99, ms"], lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
