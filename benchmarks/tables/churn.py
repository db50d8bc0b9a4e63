"""The churn table: many more adapters than fit, and cold adapters arriving while others' tokens flow.

    python -m benchmarks.tables.churn

Makes 1,000 adapters (10 GB) in the cache folder. Writes results/churn.json, results/churn.md and results/churn.svg.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lib import adapters, harness, plots, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import CACHE, Ratio, System
from benchmarks.peers import systems

REGISTERED, BUDGET, IN_FLIGHT, RATE, COLD = 1000, 32, 32, 5, 40
W = Workload()
ZIPF = replace(W, requests=256)
SPEED = (
    Ratio(f"{REGISTERED} registered, Zipf s=1.0, room for {BUDGET}, vs {BUDGET} resident: tokens/s",
          f"zipf, {REGISTERED} registered", f"zipf, {BUDGET} resident", 0.9, 0.95),
    Ratio(f"{REGISTERED} registered, evenly asked for, vs by Zipf's law: tokens/s",
          f"even, {REGISTERED} registered", f"zipf, {REGISTERED} registered", 0.6, 0.8),
)  # fmt: skip
LOADING = ("none loading", "5 cold a second")
# Quotients of latencies, turned round so that more is better: at least 1/1.5 and 1/1.2.
LATENCY = (Ratio("p99 inter-token latency, none loading over 5 cold adapters a second", *LOADING, 1 / 1.5, 1 / 1.2),)


def main() -> None:
    options = arguments()
    rows = harness.chosen(all_rows(options.base), options.only)
    before = harness.earlier(options, "churn")
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope("churn", options, samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
        plots.bars(result, options.out / "churn.svg", "itl_ms.p99", "p99 inter-token latency, ms")
    print((options.out / "churn.md").read_text())


def all_rows(base: str) -> list[System]:
    every = adapters.make(["lora-r16"], REGISTERED, Path(base), CACHE)
    resident, cold = every[:BUDGET], ",".join(map(str, every[-COLD:]))
    room = str(int((BUDGET + 0.5) * adapters.largest_bytes(every[:1])))
    even = ("--zipf", "0", "--concurrency", str(IN_FLIGHT), "--adapter-device-bytes", room)
    zipf = ("--zipf", "1.0", *even[2:])
    return [
        systems.graft(f"zipf, {BUDGET} resident", base, ZIPF, resident, *zipf),
        systems.graft(f"zipf, {REGISTERED} registered", base, ZIPF, every, *zipf),
        systems.graft(f"even, {REGISTERED} registered", base, ZIPF, every, *even),
        systems.graft("none loading", base, W, resident),
        systems.graft("5 cold a second", base, W, resident, "--cold-rate", str(RATE), "--cold", cold),
    ]


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    samples = result["samples"]
    return report.ratio_table(samples, SPEED) + "\n" + report.ratio_table(samples, LATENCY, "itl_ms.p99")


def markdown(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            report.heading(result, "Churn: more adapters than fit, and cold ones arriving"),
            f"{W.prompt_tokens} prompt and {W.new_tokens} new tokens a request, LoRA r=16 on all projections, bf16. "
            f"zipf: {ZIPF.requests} requests, {IN_FLIGHT} of them under way, adapters drawn by Zipf's law (s=1.0), even: "
            f"each as likely as any; the device's budget holds {BUDGET} adapters. The other two: the workload of serving.md on {BUDGET} resident "
            f"LoRAs, alone and while {RATE} others a second are loaded from disk and unloaded.",
            "",
            report.serving_table(result["samples"]),
            "## Ratios (of runs in the same round)",
            "",
            report.ratio_table(result["samples"], SPEED),
            report.ratio_table(result["samples"], LATENCY, "itl_ms.p99"),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
