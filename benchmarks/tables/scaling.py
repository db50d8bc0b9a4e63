"""The scale curves: tokens a second over distinct adapters, batch, rank and context, and the cost of every kind.

    python -m benchmarks.tables.scaling [--peers peft,vllm,llama] [--dtype float32]

Writes results/scaling.json, results/scaling.md, and one SVG a curve and one of the kinds (scaling-float32.* in
float32). Peers have points in one curve, that of distinct adapters.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lib import adapters, harness, plots, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import CACHE, System
from benchmarks.peers import systems

CROWD = 128  # requests of the curve over distinct adapters
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
    name, work = harness.named("scaling", options.dtype), Workload(dtype=options.dtype)
    rows = harness.chosen(all_rows(options, work), options.only)
    before = harness.earlier(options, name)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope(name, options, workload=asdict(work), samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
        draw(result, options.out)
    print((options.out / f"{name}.md").read_text())


def all_rows(options: argparse.Namespace, work: Workload) -> list[System]:
    """Rows are named CURVE LINE @X, so that curves can be read back from the JSON."""
    base, folder, peers = options.base, Path(options.base), systems.peers_of(options.peers)
    loras = adapters.make(["lora-r16"], max(DISTINCT), folder, CACHE)
    crowd, once = replace(work, requests=CROWD), {"threads": options.threads, "repeats": 1}
    rows = [systems.graft(f"distinct graft @{n}", base, crowd, loras[:n]) for n in DISTINCT]
    for n in PEER_DISTINCT:
        if "peft" in peers:
            rows.append(systems.transformers(f"distinct peft @{n}", base, crowd, loras[:n], repeats=1))
        if "vllm" in peers:
            rows.append(systems.vllm(f"distinct vllm @{n}", base, crowd, loras[:n], **once))
        if "llama" in peers:
            rows.append(systems.llama(f"distinct llama.cpp @{n}", base, crowd, loras[:n], **once))
    for n in BATCHES:
        rows.append(systems.graft(f"batch graft base @{n}", base, replace(work, requests=n)))
        rows.append(systems.graft(f"batch graft distinct LoRAs @{n}", base, replace(work, requests=n), loras[:n]))
    for rank in RANKS:
        same_rank = adapters.make([f"lora-r{rank}"], work.requests, folder, CACHE)
        rows.append(systems.graft(f"rank graft @{rank}", base, work, same_rank))
    for length in CONTEXTS:
        long = replace(work, prompt_tokens=length)
        rows.append(systems.graft(f"context graft base @{length}", base, long))
        rows.append(systems.graft(f"context graft 32 LoRAs @{length}", base, long, loras[: work.requests]))
    rows.append(systems.graft("kind none", base, work))
    for kind in KINDS:
        rows.append(systems.graft(f"kind {kind}", base, work, adapters.make([kind], work.requests, folder, CACHE)))
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
    name = result["name"]
    for curve, label in CURVES.items():
        if lines := lines_of(result["samples"], curve):
            plots.curves(lines, out / f"{name}-{curve}.svg", x=label, y="output tokens / s")
    if kinds := kinds_of(result["samples"]):
        plots.bars({"samples": kinds}, out / f"{name}-kinds.svg", label="output tokens / s, 32 distinct adapters")


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
    samples, work = result["samples"], Workload(**result["workload"])
    parts = [
        report.heading(result, "Scale: cost over adapters, batch, rank, context and kind"),
        f"As in serving.md where nothing else is said: {work.requests} requests of {work.prompt_tokens} prompt and "
        f"{work.new_tokens} new tokens, {work.dtype}, LoRA r=16 on all projections. Figures are output tokens a second.",
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
    harness.add_dtype(parser)
    parser.add_argument("--peers", default="", help="of peft, vllm, llama")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
