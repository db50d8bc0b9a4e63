"""The neighbour table: what one and two busy processes cost training, evaluating and serving, and what it was before.

    python -m benchmarks.tables.neighbour

Before is OpenMP's own way to wait: threads spin some ten milliseconds before they sleep, and are as many as ever. Writes results/neighbour.json
and results/neighbour.md.
"""

import argparse
import sys
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.harness import Ratio, System

WORKS = ("train", "eval", "serve eager", "serve fast")
BESIDE = {0: "alone", 1: "beside one", 2: "beside two"}
BEFORE = {"GOMP_SPINCOUNT": "300000", "OMP_DYNAMIC": "false"}  # the first is libgomp's own, where nothing is set
RATIOS = tuple(
    ratio
    for work in WORKS
    for ratio in (
        Ratio(f"{work}: speed alone, of that before", f"{work}, alone", f"{work}, alone, before", 0.98, 1.0),
        Ratio(f"{work}: speed beside one, of that alone", f"{work}, beside one", f"{work}, alone", 1 / 1.6, 1 / 1.3),
        Ratio(f"{work}: speed beside two, of that alone", f"{work}, beside two", f"{work}, alone", 1 / 2.2, 1 / 1.8),
        Ratio(f"{work}: before, beside one, of that alone", f"{work}, beside one, before", f"{work}, alone, before"),
        Ratio(f"{work}: before, beside two, of that alone", f"{work}, beside two, before", f"{work}, alone, before"),
    )
)  # fmt: skip


def main() -> None:
    options = arguments()
    rows = harness.chosen(all_rows(options), options.only)
    before = harness.earlier(options, "neighbour")
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope("neighbour", options, samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / "neighbour.md").read_text())
    if short := report.missed(result["samples"], RATIOS, "runs_per_s"):
        raise SystemExit(f"error: not reached: {'; '.join(short)}")


def all_rows(options: argparse.Namespace) -> list[System]:
    """What is compared with what stands next to it, so that both see the same minutes."""
    waits = {"": {}, ", before": BEFORE}
    waits |= {f", {spins} spins": {"GOMP_SPINCOUNT": spins} for spins in filter(None, options.spins.split(","))}
    return [
        measured(options, f"{work}, {name}{wait}", work, count, environment)
        for work in WORKS
        for count, name in BESIDE.items()
        for wait, environment in waits.items()
    ]


def measured(options: argparse.Namespace, name: str, work: str, count: int, environment: dict[str, str]) -> System:
    command = [sys.executable, "-m", "benchmarks.own.neighbour", "--base", options.base, "--work", work]
    command += ["--busy", str(count), "--repeats", str(options.repeats), "--dtype", options.dtype]
    return System(name, tuple(command), environment)


def markdown(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            report.heading(result, "Beside a busy process"),
            "How long graft takes for the same work alone, beside one process that keeps a core busy, and beside two. "
            "Bars: at most 1.6 times as long beside one, 2.2 times beside two, and alone within 2 % of before (shares "
            "of the speed, so 0.625, 0.455 and 0.98). Before: OpenMP's own way to wait (`GOMP_SPINCOUNT=300000`), and always as many threads (`OMP_DYNAMIC=false`).",
            "",
            seconds_table(result["samples"]),
            "",
            "## Ratios (of runs in the same round)",
            "",
            report.ratio_table(result["samples"], RATIOS, "runs_per_s"),
        ]
    )


def seconds_table(samples: harness.Samples) -> str:
    """One line a row: seconds of each run, and what else was running."""
    lines = []
    for name, taken in samples.items():
        good = [sample for sample in taken if "seconds" in sample]
        if not good:
            lines.append([name, taken[-1].get("error", "no figure"), "", ""])
            continue
        seconds = [one for sample in good for one in sample["seconds"]]
        spread = f"{min(seconds):.2f} to {max(seconds):.2f} (n={len(seconds)})"
        other = max(sample["other_cores"] for sample in good)
        lines.append([name, f"**{1 / harness.median_of(good, 'runs_per_s'):.2f}**", spread, f"{other:.2f}"])
    return report.table(["row", "seconds", "min to max", "other cores"], lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    parser.add_argument("--repeats", type=int, default=3, help="runs a sample")
    parser.add_argument("--spins", default="", help="other values of GOMP_SPINCOUNT to measure too, comma-separated")
    parser.set_defaults(rounds=2)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
