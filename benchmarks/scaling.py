"""The scale curves: tokens a second over distinct adapters, batch, rank and context, and the cost of every kind.

    python benchmarks/scaling.py [--peers peft,vllm,llama]

Writes results/scaling.json, results/scaling.md, and one SVG a curve and one of the kinds.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import adapters
import harness
import plots
import report
import systems
from common import Workload
from harness import CACHE, System

W = Workload()
CROWD = replace(W, requests=128)
KINDS = ("lora-r16", "dora-r16", "series", "pfeiffer", "parallel", "prompt", "ptuning", "prefix", "ia3", "bitfit")
DISTINCT = (1, 2, 4, 8, 16, 32, 64, 128)
PEER_DISTINCT = (1, 8, 32, 128)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
RANKS = (4, 8, 16, 32, 64)
CONTEXTS = (64, 128, 256, 512, 1024)
CURVES = {  # name: what the x axis is
    "distinct": "distinct adapters (128 requests, LoRA r=16)",
    "batch": "requests at once",
    "rank": "rank (32 distinct LoRAs)",
    "context": "prompt tokens (32 requests)",
}


def main() -> None:
    options = arguments()
    rows = harness.chosen(all_rows(options), options.only)
    before = harness.earlier(options, "scaling")
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope("scaling", options, samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
        draw(result, options.out)
    print((options.out / "scaling.md").read_text())


def all_rows(options: argparse.Namespace) -> list[System]:
    """Rows are named CURVE LINE @X, so that curves can be read back from the JSON."""
    base, folder, peers = options.base, Path(options.base), systems.peers_of(options.peers)
    loras = adapters.make(["lora-r16"], max(DISTINCT), folder, CACHE)
    rows = [systems.graft(f"distinct graft @{n}", base, CROWD, loras[:n]) for n in DISTINCT]
    if "peft" in peers:
        rows += [systems.transformers(f"distinct peft @{n}", base, CROWD, loras[:n], repeats=1) for n in PEER_DISTINCT]
    if "vllm" in peers:
        rows += [
            systems.vllm(f"distinct vllm @{n}", base, CROWD, loras[:n], threads=options.threads) for n in PEER_DISTINCT
        ]
    if "llama" in peers:
        rows += [
            systems.llama(f"distinct llama.cpp @{n}", base, CROWD, loras[:n], threads=options.threads)
            for n in PEER_DISTINCT
        ]
    for n in BATCHES:
        rows.append(systems.graft(f"batch graft base @{n}", base, replace(W, requests=n)))
        rows.append(systems.graft(f"batch graft distinct LoRAs @{n}", base, replace(W, requests=n), loras[:n]))
    for rank in RANKS:
        same_rank = adapters.make([f"lora-r{rank}"], W.requests, folder, CACHE)
        rows.append(systems.graft(f"rank graft @{rank}", base, W, same_rank))
    for length in CONTEXTS:
        long = replace(W, prompt_tokens=length)
        rows.append(systems.graft(f"context graft base @{length}", base, long))
        rows.append(systems.graft(f"context graft 32 LoRAs @{length}", base, long, loras[: W.requests]))
    rows.append(systems.graft("kind none", base, W))
    for kind in KINDS:
        rows.append(systems.graft(f"kind {kind}", base, W, adapters.make([kind], W.requests, folder, CACHE)))
    return rows


def lines_of(samples: harness.Samples, curve: str) -> dict[str, list[tuple[float, float]]]:
    """{line: [(x, median tokens a second)]} of a curve."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row, taken in samples.items():
        name, _, x = row.partition(" @")
        value = harness.median_of(taken, "tokens_per_s")
        if name.split()[0] == curve and value is not None:
            lines.setdefault(name.removeprefix(f"{curve} "), []).append((float(x), value))
    return lines


def kinds_of(samples: harness.Samples) -> harness.Samples:
    return {row.removeprefix("kind "): taken for row, taken in samples.items() if row.startswith("kind ")}


def draw(result: dict[str, Any], out: Path) -> None:
    for curve, label in CURVES.items():
        if lines := lines_of(result["samples"], curve):
            plots.curves(lines, out / f"scaling-{curve}.svg", x=label, y="output tokens / s")
    if kinds := kinds_of(result["samples"]):
        plots.bars({"samples": kinds}, out / "scaling-kinds.svg", label="output tokens / s, 32 distinct adapters")


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    return curve_tables(result["samples"])


def curve_tables(samples: harness.Samples) -> str:
    parts = []
    for curve, label in CURVES.items():
        if lines := lines_of(samples, curve):
            xs = sorted({x for points in lines.values() for x, _ in points})
            cells = [[name, *(report.figure(dict(points).get(x)) for x in xs)] for name, points in lines.items()]
            parts += [f"Output tokens a second over {label}:", "", report.table(["", *(f"{x:g}" for x in xs)], cells)]
    return "\n".join(parts)


def markdown(result: dict[str, Any]) -> str:
    samples = result["samples"]
    parts = [
        report.heading(result, "Scale: cost over adapters, batch, rank, context and kind"),
        f"As in serving.md where nothing else is said: {W.requests} requests of {W.prompt_tokens} prompt and "
        f"{W.new_tokens} new tokens, bf16, LoRA r=16 on all projections. Figures are output tokens a second.",
        "",
    ]
    parts.append(curve_tables(samples))
    kinds = kinds_of(samples)
    if kinds:
        ratios = [harness.Ratio(f"{kind} vs none", kind, "none") for kind in kinds if kind != "none"]
        parts += [
            "## 32 distinct adapters of one kind",
            "",
            report.serving_table(kinds),
            report.ratio_table(kinds, ratios),
        ]
    return "\n".join(parts)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument("--peers", default="", help="of peft, vllm, llama")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
