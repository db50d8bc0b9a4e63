"""The training table: tokens a second and peak memory of graft and PEFT on the same examples, one and many adapters.

    python -m benchmarks.tables.training

Writes results/training.json, results/training.md and two plots, training.svg and training-memory.svg.
"""

import argparse
import json
import random
import string
import sys
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, plots, report
from benchmarks.lib.harness import CACHE, Ratio, System

LENGTH, BATCH, STEPS, AT_ONCE = 128, 8, 6, 8
SHARES = {"text": LENGTH - 2, "answers": 16}  # completion tokens, EOS not counted: nearly all of it, or short answers
QV, ALL = "q_proj,v_proj", "all-linear"

# row: who, dtype, targets, which examples, sequences an adapter and step, adapters
ROWS: dict[str, tuple[str, str, str, str, int, int]] = {}
for who in ("graft", "peft"):
    ROWS[f"{who} LoRA q,v bf16"] = (who, "bfloat16", QV, "text", BATCH, 1)
    ROWS[f"{who} LoRA q,v fp32"] = (who, "float32", QV, "text", BATCH, 1)
    ROWS[f"{who} LoRA all bf16"] = (who, "bfloat16", ALL, "text", BATCH, 1)
    ROWS[f"{who} LoRA q,v bf16, short answers"] = (who, "bfloat16", QV, "answers", BATCH, 1)
    ROWS[f"{who} 8 LoRAs, batch 1 each"] = (who, "bfloat16", QV, "text", 1, AT_ONCE)
    ROWS[f"{who} all weights bf16"] = (who, "bfloat16", "all-weights", "text", BATCH, 1)
for number in (1, 2, 4):  # what more adapters at once cost in memory, beside the 8 above
    ROWS[f"graft {number} of the 8 LoRAs"] = ("graft", "bfloat16", QV, "text", 1, number)

SPEED = tuple(
    Ratio(f"{row}: tokens/s", f"graft {row}", f"peft {row}", *targets)
    for row, targets in {
        "LoRA q,v bf16": (1.3, 1.8),
        "LoRA q,v fp32": (1.3, 1.8),
        "LoRA all bf16": (1.3, 1.8),
        "LoRA q,v bf16, short answers": (1.3, 1.8),
        "8 LoRAs, batch 1 each": (1.3, 3.0),
    }.items()
)
# As savings, so that more is better: PEFT's bytes over ours, at least 1/0.9 for one adapter. With 8 LoRAs PEFT holds one
# at a time: that ratio is shown, and what more adapters at once cost is a table of its own.
MEMORY = tuple(
    Ratio(
        f"{ratio.title.partition(':')[0]}: PEFT's peak memory over ours",
        ratio.under,
        ratio.over,
        None if ratio.title.startswith("8 LoRAs") else 1 / 0.9,
    )
    for ratio in SPEED
)
# Adapters in training at once: graft's row.
AT_ONCE_ROWS = {number: f"graft {number} of the 8 LoRAs" for number in (1, 2, 4)} | {
    AT_ONCE: "graft 8 LoRAs, batch 1 each"
}


def main() -> None:
    options = arguments()
    rows = harness.chosen([system(name, options.base) for name in ROWS], options.only)
    before = harness.earlier(options, "training")
    for samples in harness.in_turns(rows, harness.conditions(options), options.threads, before):
        result = report.envelope("training", options, samples=samples)
        report.write(options.out, result, markdown(result))
        report.into_docs(options.out, result["name"], summary(result))
        plots.bars(result, options.out / "training.svg", label="tokens / s")
        plots.bars(result, options.out / "training-memory.svg", "peak_bytes", "peak resident MB", unit=1e6)
    print((options.out / "training.md").read_text())


def system(name: str, base: str) -> System:
    who, dtype, targets, share, batch, adapters = ROWS[name]
    script = {"graft": "benchmarks.own.training", "peft": "benchmarks.peers.peft_training"}[who]
    command = [sys.executable, "-m", script, "--base", base, "--dtype", dtype, "--targets", targets]
    command += ["--data", str(examples(Path(base), SHARES[share])), "--batch-size", str(batch), "--steps", str(STEPS)]
    return System(name, (*command, "--adapters", str(adapters)))


def examples(base: Path, completion: int) -> Path:
    """A JSONL file of examples that are exactly LENGTH tokens with EOS, `completion` of them learned beside EOS."""
    from transformers import AutoTokenizer

    path = CACHE / "texts" / f"{LENGTH}-{completion}.jsonl"
    if not path.exists():
        tokenizer = AutoTokenizer.from_pretrained(base)
        words = [f" {word}" for word in single_tokens(tokenizer)]
        draw = random.Random(1234)
        prompt = LENGTH - 1 - completion
        texts = [["".join(draw.choices(words, k=n)) for n in (prompt, completion)] for _ in range(BATCH * (STEPS + 1))]
        lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in texts]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    return path


def single_tokens(tokenizer: Any) -> list[str]:
    """Lower-case words that are one token after a space, so that texts of them have as many tokens as words."""
    words = sorted(token[1:] for token in tokenizer.get_vocab() if token[:1] in "Ġ▁")
    plain = [word for word in words if len(word) > 3 and set(word) <= set(string.ascii_lowercase)]
    return [word for word in plain if len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1]


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    samples = result["samples"]
    ratios = report.ratio_table(samples, SPEED) + "\n" + report.ratio_table(samples, MEMORY, "peak_bytes")
    return ratios + "\n" + memory_table(samples)


def memory_table(samples: harness.Samples) -> str:
    """Peak memory over adapters at once, beside as many processes of PEFT's with one each."""
    alone = harness.median_of(samples.get("peft 8 LoRAs, batch 1 each", []), "peak_bytes")
    lines = []
    for number, row in AT_ONCE_ROWS.items():
        ours = harness.median_of(samples.get(row, []), "peak_bytes")
        figures = (ours, None if alone is None else number * alone)
        lines.append([str(number), *(report.figure(None if x is None else x / 1e6) for x in figures)])
    return report.table(["LoRAs at once, batch 1 each", "graft, peak MB", "as many PEFT processes, MB"], lines)


def markdown(result: dict[str, Any]) -> str:
    samples = result["samples"]
    lines = []
    for name, taken in samples.items():
        good = [sample for sample in taken if "tokens_per_s" in sample]
        if not good:
            lines.append([name, taken[-1].get("error", "not measured"), "", "", ""])
            continue
        speeds = [sample["tokens_per_s"] for sample in good]
        spread = f"{report.figure(min(speeds))} to {report.figure(max(speeds))} (n={len(good)})"
        memory = report.figure((harness.median_of(good, "peak_bytes") or 0) / 1e6)
        other = f"{max(sample['other_cores'] for sample in good):.2f}"
        lines.append([name, f"**{report.figure(harness.median_of(good, 'tokens_per_s'))}**", spread, memory, other])
    return "\n".join(
        [
            report.heading(result, "Training: graft and PEFT on the same examples"),
            f"Sequences of {LENGTH} tokens, {BATCH} a step (8 LoRAs: one each), AdamW, r=8, LoRA weights in float32; "
            f'median step of {STEPS - 1} after a first one. Loss on all but the first token, except "short answers" '
            f"({SHARES['answers']} answer tokens and EOS a sequence). PEFT trains several LoRAs one after another, "
            'graft in one pass. "all weights" is full fine-tuning: graft keeps float32 masters and Adam moments, '
            "the plain loop keeps them in bf16.",
            "",
            report.table(["row", "tokens/s", "min to max", "peak MB", "other cores"], lines),
            "## Ratios (of runs in the same round)",
            "",
            report.ratio_table(samples, SPEED),
            report.ratio_table(samples, MEMORY, "peak_bytes"),
            memory_table(samples),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
