"""What drawing costs: graft's own rows of the serving table, greedy and sampled, in turns.

    python -m benchmarks.tables.sampling [--dtype float32]

Writes results/sampling.json and results/sampling.md (sampling-float32.* in float32).
"""

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import Ratio
from benchmarks.tables import serving

WAYS = {"temperature 1": (0.97, 1.0), "all": (0.95, 1.0)}
ADAPTERS = ("base", "32 LoRAs")
RATIOS = [
    Ratio(f"{one}: {way} vs greedy", f"graft {one}, {way}", f"graft {one}", *bars)
    for one in ADAPTERS
    for way, bars in WAYS.items()
]
ROWS = {name for ratio in RATIOS for name in (ratio.over, ratio.under)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    parser.set_defaults(peers="")
    options = harness.parsed(parser)
    name, work = harness.named("sampling", options.dtype), Workload(dtype=options.dtype)
    own = [row for row in serving.all_rows(options, work) if row.name in ROWS]
    rows = harness.chosen(own, options.only)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, harness.earlier(options, name)):
        result = report.envelope(name, options, workload=asdict(work), samples=samples)
        report.write(options.out, result, markdown(result))
    print((options.out / f"{name}.md").read_text())


def markdown(result: dict[str, Any]) -> str:
    """Made from the JSON alone."""
    work = Workload(**result["workload"])
    parts = [
        report.heading(result, "Drawing tokens, beside greedy"),
        f"{work.requests} requests at once, {work.prompt_tokens} prompt and {work.new_tokens} new tokens each, {work.dtype}. "
        '"all": temperature 1, top-p 0.95, a seed a request, 5 log-probabilities.',
        "",
        report.serving_table(result["samples"]),
        report.ratio_table(result["samples"], RATIOS),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
