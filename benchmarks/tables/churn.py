"""The churn table: many more adapters than fit, and cold adapters arriving while others' tokens flow.

    python -m benchmarks.tables.churn [--dtype float32]

Makes 1,000 adapters (10 GB) in the cache folder. Writes results/churn.json, results/churn.md and results/churn.svg
(churn-float32 there).
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lib import adapters, harness, plots, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import CACHE, Ratio, System
from benchmarks.peers import systems

REGISTERED, BUDGET, IN_FLIGHT, RATE, COLD = 1000, 32, 32, 5, 40
ZIPF_REQUESTS = 256
SPEED = (
    Ratio(f"{REGISTERED} registered, Zipf s=1.0, room for {BUDGET}, vs {BUDGET} resident: tokens/s",
          f"zipf, {REGISTERED} registered", f"zipf, {BUDGET} resident", 0.9, 0.95),
    Ratio(f"{REGISTERED} registered, evenly asked for, vs by Zipf's law: tokens/s",
          f"even, {REGISTERED} registered", f"zipf, {REGISTERED} registered", 0.6, 0.8),
    # What coming and going costs, apart from more different adapters in a step.
    Ratio(f"{REGISTERED} registered, Zipf s=1.0, room for {BUDGET}, vs room for all: tokens/s",
          f"zipf, {REGISTERED} registered", f"zipf, {REGISTERED} resident"),
)  # fmt: skip
LOADING = ("none loading", "5 cold a second")
# Quotients of latencies, turned round so that more is better: at least 1/1.5 and 1/1.2.
LATENCY = (Ratio("p99 inter-token latency, none loading over 5 cold adapters a second", *LOADING, 1 / 1.5, 1 / 1.2),)


def main() -> None:
    options = arguments()
    name, work = harness.named("churn", options.dtype), Workload(dtype=options.dtype)
    rows = harness.chosen(all_rows(options.base, work), options.only)
    before = harness.earlier(options, name)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope(name, options, workload=asdict(work), samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
        plots.bars(result, options.out / f"{name}.svg", "itl_ms.p99", "p99 inter-token latency, ms")
    print((options.out / f"{name}.md").read_text())


def all_rows(base: str, work: Workload) -> list[System]:
    every = adapters.make(["lora-r16"], REGISTERED, Path(base), CACHE)
    resident, cold = every[:BUDGET], ",".join(map(str, every[-COLD:]))
    size = adapters.largest_bytes(every[:1])
    under_way = ("--concurrency", str(IN_FLIGHT), "--adapter-device-bytes")
    room, room_for_all = (str(int((count + 0.5) * size)) for count in (BUDGET, REGISTERED))
    zipf, even = ("--zipf", "1.0", *under_way), ("--zipf", "0", *under_way)
    many = replace(work, requests=ZIPF_REQUESTS)
    return [
        systems.graft(f"zipf, {BUDGET} resident", base, many, resident, *zipf, room),
        systems.graft(f"zipf, {REGISTERED} registered", base, many, every, *zipf, room),
        systems.graft(f"zipf, {REGISTERED} resident", base, many, every, *zipf, room_for_all),
        systems.graft(f"even, {REGISTERED} registered", base, many, every, *even, room),
        systems.graft("none loading", base, work, resident),
        systems.graft("5 cold a second", base, work, resident, "--cold-rate", str(RATE), "--cold", cold),
    ]


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    samples = result["samples"]
    return report.ratio_table(samples, SPEED) + "\n" + report.ratio_table(samples, LATENCY, "itl_ms.p99")


def markdown(result: dict[str, Any]) -> str:
    work = Workload(**result["workload"])
    return "\n".join(
        [
            report.heading(result, "Churn: more adapters than fit, and cold ones arriving"),
            f"{work.prompt_tokens} prompt and {work.new_tokens} new tokens a request, LoRA r=16 on all projections, {work.dtype}. "
            f"zipf: {ZIPF_REQUESTS} requests, {IN_FLIGHT} of them under way, adapters drawn by Zipf's law (s=1.0), even: "
            f"each as likely as any; the device's budget holds {BUDGET} adapters, or all where they are resident. The other two: the workload of serving.md on {BUDGET} resident "
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
    harness.add_dtype(parser)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
