"""A training run from end to end: plans -> checked data -> trained adapters -> artifact folders.

Everything that can be refused is refused before the first step, and a folder is only written whole.
"""

import importlib.metadata
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from graft.hub.artifact import Artifact, save_artifact
from graft.hub.base import Base
from graft.hub.errors import DataError, GraftError
from graft.hub.examples import Example, data_hash, load_examples
from graft.hub.methods import get_method
from graft.hub.metrics import Metric, Score, default_metric, get_metric
from graft.trainer.card import model_card
from graft.trainer.config import RunConfig
from graft.trainer.data import sequences_of, without_overlap
from graft.trainer.loop import Watcher, train_all
from graft.trainer.memory import peak_bytes, restart_peak
from graft.trainer.plan import AdapterPlan, Plan, check_against_spec, check_plan
from graft.trainer.probe import make_probe
from graft.trainer.resume import Keeper, drop_checkpoint, load_checkpoint, save_checkpoint
from graft.trainer.scoring import score_examples
from graft.trainer.trainee import Trainee

_VERSIONS = ("grafthub", "torch", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What became of one adapter. `folder` is None where nothing was saved, and `stopped` says why."""

    name: str
    method: str
    task: str
    folder: Path | None
    parameters: int
    steps: int
    loss: float
    score: Score | None
    seconds: float  # of the whole run, which adapters trained together share
    tokens: int
    peak_memory_bytes: int
    stopped: str | None


@dataclass(frozen=True)
class _Job:
    """A plan with everything read and ready."""

    plan: AdapterPlan
    trainee: Trainee
    train: list[Example]
    held_out: list[Example]
    metric: Metric | None
    limit: int  # tokens of a text, virtual ones not counted

    @property
    def hash(self) -> str:
        return data_hash(self.train)


def train(
    base: Base,
    adapters: Sequence[AdapterPlan],
    run: RunConfig | None = None,
    *,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
) -> list[Outcome]:
    """Train PEFT adapters on one frozen base in one batched pass a step, and write an artifact each.

    Interrupted (KeyboardInterrupt), it leaves a checkpoint beside each output folder, from which `resume`
    continues bit for bit. Raises GraftError for anything that is wrong with the plans or their data.
    """
    run = run or RunConfig()
    plan = Plan(base.spec.id or "", tuple(adapters), run)
    check_plan(plan)
    check_against_spec(plan, base.spec)
    jobs = [prepare(base, adapter) for adapter in adapters]
    if resume:
        for job in jobs:
            load_checkpoint(job.trainee, job.plan.out, job.hash)
    by_trainee = {id(job.trainee): job for job in jobs}

    def evaluate(trainee: Trainee) -> Score | None:
        return _score(base, by_trainee[id(trainee)])

    def save_states() -> None:
        for job in jobs:
            save_checkpoint(job.trainee, job.plan.out, job.hash)

    restart_peak(base.device)
    started = time.monotonic()
    try:
        with Keeper(save_states, run.checkpoint_every) as keeper:
            train_all(base, [job.trainee for job in jobs], run, [*watchers, keeper], evaluate)
    except torch.OutOfMemoryError as error:
        raise GraftError(
            f"Out of memory: {str(error).splitlines()[0]} Lower --rows-per-pass (now {run.rows_per_pass} tokens; the "
            f"result stays the same), add --checkpoint-layers, or train fewer adapters at once."
        ) from None
    seconds, peak = time.monotonic() - started, peak_bytes(base.device)
    return [_finish(base, job, seconds, peak, watchers) for job in jobs]


def prepare(base: Base, plan: AdapterPlan) -> _Job:
    """Read and check an adapter's data and make its initial parameters. Raises GraftError or DataError."""
    if base.tokenizer is None:
        raise GraftError("This base has no tokenizer, so text can't become tokens.")
    held_out = load_examples(plan.eval_data) if plan.eval_data else []
    examples = without_overlap(load_examples(plan.data), held_out)
    metric = _metric(plan, held_out)
    method = get_method(plan.method)
    config = method.from_options(plan.options, base.spec)
    limit = min(plan.recipe.max_length or base.spec.max_positions, base.spec.max_positions - _virtual(config))
    if limit < 2:
        raise GraftError(f"{plan.label}: its virtual tokens leave no room for text in {base.spec.max_positions}.")
    sequences = sequences_of(examples, base.tokenizer, limit)
    trainee = Trainee(plan.label, method, config, plan.recipe, sequences, examples, base)
    return _Job(plan, trainee, examples, held_out[: plan.recipe.eval_limit], metric, limit)


def _metric(plan: AdapterPlan, held_out: list[Example]) -> Metric | None:
    if not held_out:
        return None
    metric = get_metric(plan.recipe.metric) if plan.recipe.metric else default_metric(held_out)
    if metric.answers == "labels" and not all(example.labels for example in held_out):
        raise DataError(f'{plan.eval_data}: the metric {metric.name} needs "labels" on every line.')
    return metric


def _virtual(config: Any) -> int:
    """Positions that a soft prompt or prefix takes."""
    return getattr(config, "tokens", 0)


def _score(base: Base, job: _Job) -> Score | None:
    if job.metric is None:
        return None
    with torch.no_grad():
        forms = job.trainee.forms(base)
    return score_examples(base, forms, job.held_out, job.metric, job.limit).score


def _finish(base: Base, job: _Job, seconds: float, peak: int, watchers: Sequence[Watcher]) -> Outcome:
    """Score and save a trained adapter; one that diverged or can't be saved is reported, and leaves no artifact."""
    trainee, plan = job.trainee, job.plan
    progress = trainee.progress
    loss = _final_loss(trainee)
    score, failure = None, progress.stopped if progress.diverged else None
    if failure is None:
        trainee.restore_best()
        score = _score(base, job)
        if score is not None:
            for watcher in watchers:
                watcher.evaluated(trainee, score)
        try:
            _save(base, job, seconds, peak, loss, score)
            drop_checkpoint(plan.out)
        except (GraftError, OSError) as error:  # the others of the run are saved all the same
            failure = f"could not be saved: {error}"
    return Outcome(
        name=plan.label,
        method=plan.method,
        task=plan.task,
        folder=None if failure else plan.out,
        parameters=trainee.trained_parameters,
        steps=progress.step,
        loss=loss,
        score=score,
        seconds=seconds,
        tokens=progress.tokens,
        peak_memory_bytes=peak,
        stopped=failure or progress.stopped,
    )


def _save(base: Base, job: _Job, seconds: float, peak: int, loss: float, score: Score | None) -> None:
    trainee, plan = job.trainee, job.plan
    tensors = trainee.tensors()
    forms = Artifact(trainee.method, trainee.config, tensors, "", {}).fold(base)  # refuses one without effect
    provenance = {
        "format": 1,
        "name": plan.label,
        "task": plan.task,
        "base": {"id": base.spec.id, "fingerprint": base.spec.fingerprint},
        "method": trainee.method.name,
        "variant": trainee.method.variant(trainee.config),
        "config": asdict(trainee.config),
        "recipe": asdict(plan.recipe),
        "learning_rate": trainee.learning_rate,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "trained_parameters": trainee.trained_parameters,
        "data": {
            "hash": job.hash,
            "train": {"file": plan.data.name, "examples": len(job.train)},
            "eval": {"file": plan.eval_data.name, "hash": data_hash(job.held_out), "examples": len(job.held_out)}
            if plan.eval_data
            else None,
        },
        "seed": plan.recipe.seed,
        "versions": versions(),
        "metrics": {"loss": loss, **({"score": asdict(score)} if score else {})},
        "steps": trainee.progress.step,
        "tokens": trainee.progress.tokens,
        "stopped": trainee.progress.stopped,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "history": trainee.progress.history,
        "evaluations": trainee.progress.evaluations,
        "probe": make_probe(base, forms),
    }
    card = model_card(plan.label, trainee.method, trainee.config, plan.task, provenance, base.spec)
    save_artifact(plan.out, trainee.method, trainee.config, tensors, base.spec, provenance=provenance, card=card)


def versions() -> dict[str, str]:
    """Of everything that could change a result."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # graft itself, run from a checkout that is not installed
            continue
    return found


def _final_loss(trainee: Trainee) -> float:
    """Mean over the last tenth of the steps: one batch's loss says little."""
    losses = [point["loss"] for point in trainee.progress.history]
    last = losses[-max(1, len(losses) // 10) :]
    return math.fsum(last) / len(last) if last else math.nan
