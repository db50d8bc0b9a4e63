"""The quality table: held-out score of every method trained by graft beside the same method trained with PEFT.

    python -m benchmarks.tables.quality

Same base, data, steps, batches in the same order, rates, schedule and sizes; each with its own implementation and
start. Every adapter is saved, loaded and scored by graft. One round is one seed. Writes results/quality.json,
results/quality.md and quality.svg. Nothing is timed, so no quiet machine is waited for.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.lib import harness, plots, report
from benchmarks.lib.harness import System
from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.methods import get_method
from graft.hub.adapters.serving_forms import Form
from graft.hub.base.model import Base, load_base
from graft.hub.evaluation.metrics import default_metric, sign_flips
from graft.hub.evaluation.task_data import Example, load_examples
from graft.trainer import AdapterPlan, RunConfig, TrainConfig, train
from graft.trainer.data.batches import Order
from graft.trainer.data.sequences import sequences_of, without_overlap
from graft.trainer.evaluation.scoring import score_examples

BARE = "bare base"
RECIPE = ("steps", "batch_size", "dtype")  # what samples of one table share
LORA = "graft LoRA"


@dataclass(frozen=True)
class Row:
    """One way to train one method. `peft`: what PEFT's config says beside graft's own; None: trained by graft."""

    method: str
    peft: dict[str, Any] | None = None
    from_text: bool = False  # PEFT's prefix starts from real keys and values, as graft's does
    other_rate: float | None = None  # than graft's default for the method

    @property
    def rate(self) -> float:
        return self.other_rate or get_method(self.method).learning_rate


ROWS = {
    LORA: Row("lora"),
    "peft LoRA": Row("lora", {}),
    "graft prompt": Row("prompt"),
    "peft prompt": Row("prompt", {"prompt_tuning_init": "SAMPLE_VOCAB"}),
    "graft prefix": Row("prefix"),
    "peft prefix": Row("prefix", {}, from_text=True),
    "graft P-tuning": Row("ptuning"),
    "peft P-tuning": Row("ptuning", {}),
    "graft IA3": Row("ia3"),
    "peft IA3": Row("ia3", {}),
    "graft series": Row("series"),
    "graft parallel": Row("parallel"),
    "peft prefix, random start": Row("prefix", {}),
    "peft P-tuning at 1e-2": Row("ptuning", {}, other_rate=1e-2),
}
# row: what it is held against, one of which it may not be worse than
PEERS = {row: row.replace("graft", "peft") for row in ROWS if row.replace("graft", "peft") in ROWS.keys() - {row}}
PEERS |= {"graft series": LORA, "graft parallel": LORA}


@dataclass(frozen=True)
class Task:
    """What every row is trained and scored on."""

    options: argparse.Namespace
    base: Base
    examples: list[Example]
    held_out: list[Example]
    limit: int

    def recipe(self, seed: int) -> TrainConfig:
        return TrainConfig(steps=self.options.steps, batch_size=self.options.batch_size, seed=seed)


def main() -> None:
    options = arguments()
    rows = harness.chosen([System(name, ()) for name in ROWS], options.only)
    task, samples = read_task(options), earlier(options)
    if BARE not in samples:
        with harness.held(options.lock):
            samples[BARE] = [{"round": 0, **scored(task, ())}]
    for seed in range(options.rounds):
        for name in (row.name for row in rows):
            if any(sample["round"] == seed for sample in samples.get(name, [])):
                continue
            with harness.held(options.lock):
                samples.setdefault(name, []).append({"round": seed, **measured(task, ROWS[name], seed)})
            harness.say(f"seed {seed}  {name:28} {samples[name][-1]['score']:.3f}")
            publish(options, task, samples)
    publish(options, task, samples)
    print((options.out / "quality.md").read_text())


def earlier(options: argparse.Namespace) -> harness.Samples:
    """The samples that `--append` adds to. Raises SystemExit where they are of another recipe."""
    samples = harness.earlier(options, "quality")
    if samples:
        recipe = json.loads((options.out / "quality.json").read_text())["recipe"]
        now = {key: getattr(options, key) for key in RECIPE} | {name: row.rate for name, row in ROWS.items()}
        then = {key: recipe[key] for key in RECIPE} | recipe["rates"]
        if differing := [key for key, value in then.items() if now.get(key) != value]:
            key = differing[0]
            raise SystemExit(f"error: {key} is {now.get(key)} now, but {then[key]} in the results to be added to")
    return samples


def publish(options: argparse.Namespace, task: Task, taken: harness.Samples) -> None:
    samples = {row: taken[row] for row in (BARE, *ROWS) if row in taken}
    facts = {key: getattr(options, key) for key in RECIPE} | {
        "examples": len(task.examples),
        "held_out": len(task.held_out),
        "rates": {name: row.rate for name, row in ROWS.items() if name in samples},
    }
    result = report.envelope("quality", options, recipe=facts, samples=samples)
    report.write(options.out, result, markdown(result))
    report.into_docs(options.out, result["name"], summary(result))
    scores = {row: [sample["score"] for sample in taken] for row, taken in samples.items()}
    plots.spans(scores, options.out / "quality.svg", "held-out accuracy: seeds and their mean")


def read_task(options: argparse.Namespace) -> Task:
    """Raises SystemExit where a held-out prompt is trained on too."""
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    examples, held_out = load_examples(options.data), load_examples(options.eval_data)
    if len(without_overlap(examples, held_out)) < len(examples):
        raise SystemExit("error: some prompts of --eval-data are in --data too")
    return Task(options, base, examples, held_out, base.spec.max_positions)


def measured(task: Task, row: Row, seed: int) -> dict[str, Any]:
    """Train, save, load, score."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "adapter"
        losses = trained_here(task, row, seed, out) if row.peft is None else trained_by_peft(task, row, seed, out)
        found = scored(task, load_artifact(out, task.base.spec).fold(task.base))
    tail = losses[-max(1, len(losses) // 10) :]
    return {**found, "loss": statistics.fmean(tail), "losses": losses, "commit": harness.commit()}


def scored(task: Task, forms: tuple[Form, ...]) -> dict[str, Any]:
    """The score, and the value of every held-out example."""
    found = score_examples(task.base, forms, task.held_out, default_metric(task.held_out), task.limit)
    return {"score": found.score.value, "values": found.values}


def trained_here(task: Task, row: Row, seed: int, out: Path) -> list[float]:
    """The loss of every step of `graft train` with the method's defaults."""
    plan = AdapterPlan(method=row.method, data=task.options.data, out=out, recipe=task.recipe(seed))
    (outcome,) = train(task.base, [plan], RunConfig(dtype=task.options.dtype))
    if outcome.folder is None:
        raise SystemExit(f"error: {row.method}, seed {seed}: {outcome.stopped}")
    history = load_artifact(out, task.base.spec).provenance["history"]
    return [point["loss"] for point in history]


def trained_by_peft(task: Task, row: Row, seed: int, out: Path) -> list[float]:
    """The loss of every step of PEFT in a plain loop, with graft's sizes, rate and batches."""
    method, recipe, options = get_method(row.method), task.recipe(seed), task.options
    config = method.write(method.from_options({}, task.base.spec), task.base.spec) | (row.peft or {})
    batches = out.parent / "batches.json"
    batches.write_text(json.dumps([[asdict(sequence) for sequence in batch] for batch in batches_of(task, recipe)]))
    command = [sys.executable, "-m", "benchmarks.peers.peft_quality", "--base", options.base, "--dtype", options.dtype]
    command += ["--batches", str(batches), "--config", json.dumps(config), "--rate", str(row.rate)]
    command += ["--warmup", str(recipe.warmup), "--seed", str(seed), "--out", str(out)]
    command += ["--start-text", str(task.examples[0].prompt)] if row.from_text else []
    found = harness.run(System("peft", tuple(command)), options.threads)
    if "error" in found:
        raise SystemExit(f"error: PEFT's {row.method}: {found['error']}")
    return found["losses"]


def batches_of(task: Task, recipe: TrainConfig) -> list[list[Any]]:
    """The batches that graft's trainer draws with this seed."""
    sequences = sequences_of(task.examples, task.base.tokenizer, task.limit)
    order = Order(sequences, recipe.batch_size, recipe.seed)
    return [order.next() for _ in range(recipe.steps or 0)]


def compared(samples: harness.Samples, row: str) -> tuple[float, float] | None:
    """(mean difference to its peer over the seeds that both have, two-sided p), None where nothing was measured.

    The p is of a paired test over the held-out examples, each with its mean over the seeds.
    """
    pairs = harness.paired_samples(samples, row, PEERS[row])
    if not pairs:
        return None
    ours, theirs = (mean_of([sample["values"] for sample in side]) for side in zip(*pairs, strict=True))
    return statistics.fmean(ours) - statistics.fmean(theirs), sign_flips(ours, theirs)


def mean_of(lists: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.fmean(values) for values in zip(*lists, strict=True)]


def verdict(difference: float, p: float) -> str:
    if difference >= 0:
        return "at least equal"
    return "within noise" if p >= 0.05 else "worse"


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows."""
    samples, lines = result["samples"], []
    for row, peer in PEERS.items():
        found = compared(samples, row)
        if found:
            lines.append([row, spread(samples[row]), peer, spread(samples[peer]), f"{found[0]:+.3f}",
                          f"{found[1]:.2g}", verdict(*found)])  # fmt: skip
    return report.table(["trained by", "accuracy", "beside", "accuracy", "difference", "p", ""], lines)


def spread(taken: Sequence[dict[str, Any]], key: str = "score") -> str:
    values = [sample[key] for sample in taken]
    return f"**{statistics.fmean(values):.3f}** ({min(values):.3f} to {max(values):.3f}, n={len(values)})"


def markdown(result: dict[str, Any]) -> str:
    recipe, samples = result["recipe"], result["samples"]
    lines = [
        [row, f"{recipe['rates'][row]:g}", spread(taken), spread(taken, "loss")]
        for row, taken in samples.items()
        if row != BARE
    ]
    return "\n".join(
        [
            report.heading(result, "Quality: graft and PEFT on the same task"),
            f"{recipe['examples']} examples, {recipe['steps']} steps of {recipe['batch_size']}, base in "
            f"{recipe['dtype']}, adapters in float32, AdamW, rate rising over 6 % of the steps and then falling as a "
            "cosine, gradients cut to norm 1. PEFT trains in a plain loop on the very batches that graft drew, with "
            "graft's sizes and, unless the row says otherwise, rates; starts are each implementation's own draws. All adapters were saved, loaded and "
            f"scored by graft on {recipe['held_out']} held-out examples. Mean over seeds (least to greatest).",
            "",
            f"Bare base: {samples[BARE][0]['score']:.3f}.",
            "",
            summary(result),
            "p: paired sign flips over the held-out examples, each with its mean over the seeds; it says what other "
            "examples might change, not what other seeds might: the spread over seeds is beside the means.",
            "",
            report.table(["row", "peak rate", "accuracy", "loss of the last tenth of the steps"], lines),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument("--data", type=Path, help="training examples (default: the demo's news topics)")
    parser.add_argument("--eval-data", type=Path, help="held-out examples with labels")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="bfloat16")
    options = harness.parsed(parser)
    if (options.data is None) != (options.eval_data is None):
        parser.error("--data and --eval-data go together")
    if options.data is None:
        from benchmarks.lib.standard_base import standard_tasks

        options.data, options.eval_data = (standard_tasks() / f"news-topic.{part}.jsonl" for part in ("train", "test"))
    return options


if __name__ == "__main__":
    main()
