"""The serving table: one workload without adapters and with every mixture of them, graft and its peers in one run.

    python -m benchmarks.tables.serving                                        graft, transformers, PEFT
    python -m benchmarks.tables.serving --peers transformers,peft,vllm,llama   and vLLM and llama.cpp, installed apart
    python -m benchmarks.tables.serving --dtype float32                        where the machine has no bf16 arithmetic

Writes results/serving.json, results/serving.md and results/serving.svg (serving-float32.* in float32).
"""

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.lib import adapters, harness, plots, report
from benchmarks.lib.common import Workload
from benchmarks.lib.harness import CACHE, Ratio, System
from benchmarks.peers import systems

RATIOS = (
    Ratio("base only vs vLLM base only", "graft base", "vllm base", 1.0, 1.25),
    Ratio("base only vs transformers base only", "graft base", "transformers base"),
    Ratio("base only vs llama.cpp base only", "graft base", "llama base"),
    Ratio("one LoRA for all 32 vs own base only", "graft 1 LoRA", "graft base", 0.85, 0.95),
    Ratio("32 distinct LoRAs vs own base only", "graft 32 LoRAs", "graft base", 0.55, 0.75),
    Ratio("one request alone, base, vs transformers", "graft base, alone", "transformers base, alone", 2.0, 2.7),
    Ratio("one request alone, base, vs llama.cpp", "graft base, alone", "llama base, alone", 0.7, 1.0),
    Ratio("32 distinct LoRAs vs vLLM the same", "graft 32 LoRAs", "vllm 32 LoRAs", 3.5, 5.0),
    Ratio("one LoRA for all 32 vs vLLM the same", "graft 1 LoRA", "vllm 1 LoRA"),
    Ratio("one LoRA for all 32 vs llama.cpp the same", "graft 1 LoRA", "llama 1 LoRA"),
    Ratio("32 distinct LoRAs vs llama.cpp, one after another", "graft 32 LoRAs", "llama 32 LoRAs"),
    Ratio("32 distinct LoRAs vs PEFT mixed batch", "graft 32 LoRAs", "peft 32 LoRAs", 10.0, 15.0),
    Ratio("32 adapters of 6 kinds vs 32 LoRAs", "graft 6 kinds", "graft 32 LoRAs", 0.9, 1.0),
    Ratio("soft prompts (20 virtual tokens) vs own base only", "graft soft prompts", "graft base", 0.95, 1.0),
    Ratio("adapters loaded but unused vs plain base", "graft unused", "graft base", 0.97),
    Ratio("32 LoRAs, temperature 1, vs greedy", "graft 32 LoRAs, temperature 1", "graft 32 LoRAs", 0.97, 1.0),
    Ratio("32 LoRAs, top-p, seeds, 5 log-probabilities, vs greedy", "graft 32 LoRAs, all", "graft 32 LoRAs", 0.95, 1.0),
    Ratio("base, temperature 1, vs vLLM the same", "graft base, temperature 1", "vllm base, temperature 1", 1.0, 1.25),
    Ratio("base, top-p, seeds, 5 log-probabilities, vs vLLM the same", "graft base, all", "vllm base, all"),
    Ratio("base only vs the same without matrix registers", "graft base", "graft base, no AMX"),
    Ratio("32 distinct LoRAs vs the same without matrix registers", "graft 32 LoRAs", "graft 32 LoRAs, no AMX"),
    Ratio("soft prompts vs own base only, both without", "graft soft prompts, no AMX", "graft base, no AMX", 0.95, 1.0),
    Ratio("vLLM: 32 distinct LoRAs vs its base only", "vllm 32 LoRAs", "vllm base"),
    Ratio("PEFT: 32 distinct LoRAs vs transformers base only", "peft 32 LoRAs", "transformers base"),
)
# What is measured without matrix registers as well, where there are some.
_BOTH_WAYS = ("graft base", "graft 32 LoRAs", "graft soft prompts")
ROOFS = (
    ("base only", "graft base", "base", 0.55, 0.75),
    ("32 distinct LoRAs", "graft 32 LoRAs", "adapters", 0.55, 0.75),
)


def main() -> None:
    options = arguments()
    name, work = harness.named("serving", options.dtype), Workload(dtype=options.dtype)
    rows = harness.chosen(all_rows(options, work), options.only)
    before = harness.earlier(options, name)
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope(name, options, workload=asdict(work), samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
        plots.bars(result, options.out / f"{name}.svg")
    print((options.out / f"{name}.md").read_text())


def all_rows(options: argparse.Namespace, work: Workload) -> list[System]:
    base, peers, alone = options.base, systems.peers_of(options.peers), replace(work, requests=1)
    sampled = replace(work, temperature=1.0)
    everything = replace(sampled, top_p=0.95, seeded=True, logprobs=5)
    loras = adapters.make(["lora-r16"], work.requests, Path(base), CACHE)
    weights = sum(adapters.largest_bytes([folder]) for folder in loras) // 2  # they lie there in bf16
    six = adapters.make(adapters.SIX_KINDS, work.requests, Path(base), CACHE)
    soft = adapters.make(adapters.SOFT_PROMPTS, work.requests, Path(base), CACHE)
    assert adapters.largest_bytes(six) <= adapters.largest_bytes(loras)
    limit = (sys.executable, "-m", "benchmarks.tables.roofline", "--base", base, "--workload", work.to_json())
    rows = [
        System("roofline", (*limit, "--adapter-weights", str(weights))),
        systems.graft("graft base", base, work),
        systems.graft("graft unused", base, work, loras, distinct=0),
        systems.graft("graft 1 LoRA", base, work, loras[:1]),
        systems.graft("graft 32 LoRAs", base, work, loras),
        systems.graft("graft 6 kinds", base, work, six),
        systems.graft("graft soft prompts", base, work, soft),
        systems.graft("graft base, alone", base, alone),
        systems.graft("graft base, temperature 1", base, sampled),
        systems.graft("graft base, all", base, everything),
        systems.graft("graft 32 LoRAs, temperature 1", base, sampled, loras),
        systems.graft("graft 32 LoRAs, all", base, everything, loras),
    ]
    if work.dtype == "bfloat16" and "amx_bf16" in Path("/proc/cpuinfo").read_text():
        rows += [_without_matrices(row) for row in rows if row.name in _BOTH_WAYS]
    if "transformers" in peers:
        rows.append(systems.transformers("transformers base", base, work))
        rows.append(systems.transformers("transformers base, alone", base, alone))
    if "peft" in peers:
        rows.append(systems.transformers("peft 1 LoRA", base, work, loras[:1]))
        rows.append(systems.transformers("peft 32 LoRAs", base, work, loras, repeats=1))
    if "vllm" in peers:
        rows.append(systems.vllm("vllm base", base, work, threads=options.threads))
        rows.append(systems.vllm("vllm 1 LoRA", base, work, loras[:1], threads=options.threads))
        rows.append(systems.vllm("vllm 32 LoRAs", base, work, loras, threads=options.threads))
        rows.append(systems.vllm("vllm base, temperature 1", base, sampled, threads=options.threads))
        rows.append(systems.vllm("vllm base, all", base, everything, threads=options.threads))
        rows.append(systems.vllm("vllm base, alone", base, alone, threads=options.threads))
    if "llama" in peers:
        rows.append(systems.llama("llama base", base, work, threads=options.threads))
        rows.append(systems.llama("llama 1 LoRA", base, work, loras[:1], threads=options.threads))
        rows.append(systems.llama("llama 32 LoRAs", base, work, loras, threads=options.threads))
        rows.append(systems.llama("llama base, alone", base, alone, threads=options.threads))
    return rows


def _without_matrices(row: System) -> System:
    """As on a CPU whose vectors multiply bfloat16 and which has no matrix registers."""
    return replace(row, name=f"{row.name}, no AMX", environment={"CXXFLAGS": "-mno-amx-bf16"})


def markdown(result: dict[str, Any]) -> str:
    """Made from the JSON alone."""
    samples, work = dict(result["samples"]), Workload(**result["workload"])
    roofs = [sample for sample in samples.pop("roofline", []) if "rates" in sample]
    parts = [
        report.heading(result, "Serving: adapters mixed in one batch"),
        f"Workload: {work.requests} requests at once, {work.prompt_tokens} random prompt tokens and {work.new_tokens} new "
        f'tokens each, greedy where nothing else is said ("all": temperature 1, top-p 0.95, a seed a request, 5 '
        f"log-probabilities), {work.dtype}; output tokens over wall time, prompts included, loading and warm-up excluded. Each row is "
        "a process of its own; rows take turns, round after round. LoRAs have r=16 on all linear projections; the six "
        f"kinds are {', '.join(adapters.SIX_KINDS)}, soft prompts {', '.join(adapters.SOFT_PROMPTS)}, none larger "
        'than the LoRA. "other cores" is the most CPU that everything else on the machine used during a run.',
        "",
        report.serving_table(samples),
        "## Ratios (of runs in the same round)",
        "",
        report.ratio_table(samples, RATIOS),
        "## Against the machine's limits",
        "",
        roofline_table(samples, roofs),
    ]
    return "\n".join(parts)


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    return report.ratio_table(result["samples"], RATIOS)


def roofline_table(samples: harness.Samples, roofs: list[dict[str, Any]]) -> str:
    """Share of what benchmarks/tables/roofline.py says the machine allows."""
    if not roofs:
        return "Not measured.\n"
    lines = []
    for title, row, limit, bar, goal in ROOFS:
        realistic, ideal = (harness.median_of(roofs, f"{limit}.{kind}") for kind in ("realistic", "ideal"))
        speed = harness.median_of(samples.get(row, []), "tokens_per_s")
        share = "-" if speed is None else f"**{speed / realistic:.2f}**"
        lines.append([title, report.figure(realistic), report.figure(ideal), report.figure(speed), share, bar, goal])
    rates = ", ".join(
        f"{name} {report.figure(harness.median_of(roofs, f'rates.{name}'))}" for name in roofs[0]["rates"]
    )
    header = ["workload", "realistic limit", "ideal limit", "measured", "share of realistic", "bar", "goal"]
    return f"{report.table(header, lines)}\nMeasured rates: {rates}.\n"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    harness.add_dtype(parser)
    parser.add_argument("--peers", default=systems.DEFAULT_PEERS, help=f"of {', '.join(systems.PEERS)}")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
