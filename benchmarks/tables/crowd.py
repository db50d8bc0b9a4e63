"""The crowd table: 256 streams on 64 adapters of all kinds, for ten minutes.

    python -m benchmarks.tables.crowd [--dtype float32]

Writes results/crowd.json and results/crowd.md (crowd-float32 there).
"""

import argparse
import sys
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.harness import System

# Figure -> (what it is, bar, goal); the least is best.
BARS = {
    "errors": ("requests that ended in an error", 0, 0),
    "growth": ("growth of resident memory, the last tenth of the time over the first", 0.03, 0.01),
    "spread": ("time between tokens, p99 over p50", 5, 3),
}


def main() -> None:
    options = arguments()
    name = harness.named("crowd", options.dtype)
    command = [sys.executable, "-m", "benchmarks.own.crowd", "--base", options.base, "--seconds", str(options.seconds)]
    rows = [System("crowd", (*command, "--dtype", options.dtype))]
    before = harness.earlier(options, name)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope(name, options, seconds=options.seconds, samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / f"{name}.md").read_text())
    if short := missed(result["samples"]):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def missed(samples: harness.Samples) -> list[str]:
    found = {name: harness.median_of(samples["crowd"], name) for name in BARS}
    return [name for name, value in found.items() if value is None or value > BARS[name][1]]


def markdown(result: dict[str, Any]) -> str:
    taken = [sample for sample in result["samples"]["crowd"] if "spread" in sample]
    lines = [
        [what, f"**{harness.median_of(taken, name)}**", bar, goal] for name, (what, bar, goal) in BARS.items() if taken
    ]
    for sample in taken:
        gaps, resident = sample["itl_ms"], sample["resident_bytes"]
        lines += [
            ["requests; tokens a second", f"{sample['requests']:,}; {sample['tokens_per_s']}", "", ""],
            ["time between tokens, ms: p50, p90, p99, most", ", ".join(map(str, gaps.values())), "", ""],
            ["resident MB, first and last", ", ".join(f"{size / 1e6:,.0f}" for size in resident), "", ""],
        ]
    return "\n".join(
        [
            report.heading(result, "A crowd: 256 streams on 64 adapters of all kinds"),
            f"In one process, for {result['seconds']:g} s after the first: 256 requests at any time, each on one of 64 "
            "adapters of fourteen sorts, prompts and answers of 16 to 128 tokens, half of them greedy and half at temperature 1 with "
            "top-p 0.95.",
            "",
            report.table(["what", "measured", "bar", "goal"], lines),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.set_defaults(rounds=1)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
