"""Serving on a GPU: graft's fast runner, steps begun early and in turn, its eager one, and PEFT's mixed batch, on one random base, in turns.

    python -m benchmarks.tables.gpu [--size 1.7] [--systems graft peft] [--rounds 1]

Needs a CUDA GPU; a base in files is not needed. Writes results/gpu-SIZE.json and results/gpu-SIZE.md.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, report
from benchmarks.lib.harness import Ratio, System
from benchmarks.lib.shapes import SIZES

# "in turn": no step is begun before the one before it has ended.
OURS_AND_PEERS = ("graft", "graft in turn", "graft eager", "peft")
RATIOS = (  # title, row over, row under
    ("32 LoRAs against the bare base, 32 requests", "32 LoRAs @32", "base @32"),
    ("six kinds against the bare base", "six kinds @32", "base @32"),
    ("temperature 1 against greedy", "32 LoRAs @32, sampled", "32 LoRAs @32"),
    ("top-p 0.95 against greedy", "32 LoRAs @32, top-p", "32 LoRAs @32"),
    ("5 log-probabilities against greedy", "32 LoRAs @32, logprobs", "32 LoRAs @32"),
)


def main() -> None:
    options = arguments()
    common = ("--size", options.size, "--new-tokens", str(options.new_tokens), "--repeats", str(options.repeats))
    common += ("--rows", *options.rows) if options.rows else ()
    command = (sys.executable, "-m", "benchmarks.own.gpu", *common)
    systems = [System(name, (*command, "--system", name)) for name in options.systems]
    rounds: harness.Samples = {}
    for number in range(1, options.rounds + 1):
        for system in systems:
            taken = harness.run(system, options.threads)
            harness.say(f"round {number}  {system.name}: {taken.get('error', 'done')}")
            for row, sample in taken.get("rows", {}).items():
                rounds.setdefault(f"{system.name}: {row}", []).append(sample | {"round": number})
            device = taken.get("device", "?")
            result = report.envelope(f"gpu-{options.size}", options, device=device, samples=rounds, size=options.size)
            report.write(options.out, result, markdown(result))
    print((options.out / f"gpu-{options.size}.md").read_text())


def markdown(result: dict[str, Any]) -> str:
    samples: harness.Samples = result["samples"]
    systems = list(dict.fromkeys(name.partition(": ")[0] for name in samples))
    rows = list(dict.fromkeys(name.partition(": ")[2] for name in samples))
    cells = [[row, *(_figure(samples, f"{system}: {row}") for system in systems)] for row in rows]
    ratios = [
        Ratio(title, f"{system}: {over}", f"{system}: {under}")
        for system in systems
        for title, over, under in RATIOS
        if f"{system}: {over}" in samples and f"{system}: {under}" in samples
    ]
    against = [
        Ratio(f"graft against {system}: {row}", f"graft: {row}", f"{system}: {row}")
        for system in systems[1:]
        for row in rows
        if f"{system}: {row}" in samples
    ]
    parts = [
        report.heading(result, f"Serving on a GPU: {result['device']}, {result['size']}e9 random weights, bfloat16"),
        "Output tokens a second, all requests at once, prompts of 64 tokens where nothing else is said; LoRA r=16 on all "
        "projections.",
        "",
        report.table(["row", *systems], cells),
        report.table(
            ["ratio", "paired, median"], [[ratio.title, _ratio(samples, ratio)] for ratio in ratios + against]
        ),
    ]
    return "\n".join(parts)


def _figure(samples: harness.Samples, name: str) -> str:
    value = harness.median_of(samples.get(name, []), "tokens_per_s")
    if value is not None:
        return report.figure(value)
    return samples[name][0]["error"][:40] if name in samples else ""


def _ratio(samples: harness.Samples, ratio: Ratio) -> str:
    pairs = harness.paired(samples, ratio)
    return f"{statistics.median(pairs):.2f}" if pairs else ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1.7", help="weights in 1e9")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--systems", nargs="*", choices=OURS_AND_PEERS, default=OURS_AND_PEERS, help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="measured runs of a row after its warm-up")
    parser.add_argument("--rows", nargs="*", default=[], help="rows to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
