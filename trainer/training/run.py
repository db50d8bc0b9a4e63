"""A training run from end to end: plans -> checked data -> trained adapters -> artifact folders.

Everything that can be refused is refused before the first step, and a folder is only written whole.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import torch
from transformers import CONFIG_NAME

from graft.hub.adapters.artifact import Artifact, load_artifact, save_artifact
from graft.hub.adapters.methods import get_method
from graft.hub.adapters.serving_forms import LowRank, detours
from graft.hub.adapters.validation import PROVENANCE
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.hub.evaluation.metrics import Score
from graft.hub.evaluation.task_data import Example, data_hash, load_examples
from graft.hub.machine.output_folder import require_free
from graft.trainer.artifact.card import model_card
from graft.trainer.artifact.probe import Prober
from graft.trainer.artifact.provenance import identity_of, provenance_of
from graft.trainer.artifact.words import words_of_training
from graft.trainer.data.alike_tokens import alike_tokens
from graft.trainer.data.sequences import TokenSequence, sequences_of, without_overlap
from graft.trainer.evaluation.scoring import check_scorable, score_examples
from graft.trainer.learners.adapter import AdapterLearner
from graft.trainer.learners.job import TrainingData, TrainingJob, TrainingOutcome
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import (
    BASELINES,
    AdapterPlan,
    Plan,
    check_against_spec,
    check_plan,
    metric_of,
    room_of,
    training_folder,
)
from graft.trainer.process.memory import peak_bytes, restart_peak
from graft.trainer.training.checkpoints import common_save, drop_checkpoint, load_checkpoint, save_checkpoint
from graft.trainer.training.disk_room import require_room
from graft.trainer.training.interrupts import Keeper, ignore_interrupts
from graft.trainer.training.loop import Watcher, train_all

Save = Callable[[Base, TrainingJob, TrainingOutcome], None]
Say = Callable[[str], None]  # what a person should know of the run
Load = Callable[[Path], list[Example]]  # a file's examples


def say_nothing(message: str) -> None:
    """Nobody listens."""


def train(
    base: Base,
    adapters: Sequence[AdapterPlan],
    run: RunConfig | None = None,
    *,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    overwrite: bool = True,
    say: Say = say_nothing,
    load: Load = load_examples,
) -> list[TrainingOutcome]:
    """Train PEFT adapters on one frozen base in one batched pass a step, and write an artifact each.

    Interrupted by Ctrl-C (KeyboardInterrupt), it leaves a checkpoint beside each output folder, from which
    `resume` continues bit for bit; adapters that are finished are taken as they are, and `say` is told which.
    Without `overwrite` nothing else that lies in an output folder is replaced. `load` gives the examples of a plan's
    files. Raises GraftError for anything that is wrong with the plans, their data or their folders.
    """
    run = run or RunConfig()
    plan = Plan(base.spec.id or "", tuple(adapters), run)
    check_plan(plan)
    check_against_spec(plan, base.spec)
    prober = Prober(base)

    def save(base: Base, job: TrainingJob, outcome: TrainingOutcome) -> None:
        _save(base, job, outcome, prober)

    jobs = [prepare(base, adapter, load) for adapter in adapters]
    for job in jobs:
        _say_what_cant_be_learned(base, job, say)
    return run_jobs(base, jobs, run, watchers, resume, save, overwrite, say)


def run_jobs(
    base: Base,
    jobs: list[TrainingJob],
    run: RunConfig,
    watchers: Sequence[Watcher],
    resume: bool,
    save: Save,
    overwrite: bool = True,
    say: Say = say_nothing,
) -> list[TrainingOutcome]:
    """Train prepared jobs, score them, and `save` each that is sound. `resume`: those that are not finished yet."""
    common = common_save([job.plan.out for job in jobs]) if resume else None
    finished = [_continue_job(base, job, common, overwrite, say) if resume else None for job in jobs]
    left = [job for job, outcome in zip(jobs, finished, strict=True) if outcome is None]
    require_room({job.plan.out: job.learner for job in left})
    trained = iter(_train(base, left, run, watchers, save, say) if left else [])
    return [outcome or next(trained) for outcome in finished]


def _train(
    base: Base,
    jobs: list[TrainingJob],
    run: RunConfig,
    watchers: Sequence[Watcher],
    save: Save,
    say: Say,
) -> list[TrainingOutcome]:
    """Train the jobs from where they stand, score and save them."""
    learners = [job.learner for job in jobs]
    by_learner = {id(job.learner): job for job in jobs}

    def evaluate(learner: Learner) -> Score | None:
        return _score(base, by_learner[id(learner)])

    def save_states(of: Sequence[TrainingJob] = jobs) -> None:
        this = uuid4().hex
        for job in of:
            save_checkpoint(job.learner, job.plan.out, _checkpoint_conditions(base, job), this)

    restart_peak(base.device)
    started = time.monotonic()
    try:
        with Keeper(save_states, run.checkpoint_every, learners, say) as keeper:
            train_all(base, learners, run, [keeper, *watchers], evaluate)
    except torch.OutOfMemoryError as error:
        raise GraftError(
            f"Out of memory: {str(error).splitlines()[0]} Lower --rows-per-pass (now {run.rows_per_pass} tokens; the "
            f"result stays the same), add --checkpoint-layers, or train fewer adapters at once."
        ) from None
    seconds, peak = time.monotonic() - started, peak_bytes(base.device)
    outcomes: list[TrainingOutcome] = []
    try:
        for job in jobs:
            outcomes.append(_finish(base, job, seconds, peak, watchers, save))
    except (KeyboardInterrupt, Exception):  # in the last scores, the last probes: what was trained is not lost
        with ignore_interrupts():
            save_states(jobs[len(outcomes) :])
        raise
    return outcomes


def _continue_job(base: Base, job: TrainingJob, save: str | None, overwrite: bool, say: Say) -> TrainingOutcome | None:
    """Load the job's checkpoint, of `save` if it has one; the outcome of one that an earlier run has finished.

    Raises GraftError where neither is there, but something else that only `overwrite` may replace.
    """
    if load_checkpoint(job.learner, job.plan.out, _checkpoint_conditions(base, job), save):
        return None
    outcome = _find_finished(base, job)
    if outcome:
        say(f"{job.plan.label}: {job.plan.out} is finished, and taken as it is.")
    else:
        if not overwrite:
            require_free(job.plan.out, f"it is not what {job.plan.label} would become; --overwrite replaces it")
        say(
            f"{job.plan.label}: there is no checkpoint {training_folder(job.plan.out)}, so it starts from the beginning."
        )
    return outcome


def _find_finished(base: Base, job: TrainingJob) -> TrainingOutcome | None:
    """What became of a training that would be the same as this one, where its folder is whole; else None."""
    plan = job.plan
    try:
        told = json.loads((plan.out / PROVENANCE).read_text("utf-8"))
        whole = (plan.out / CONFIG_NAME).is_file() if plan.method in BASELINES else load_artifact(plan.out, base.spec)
        same = json.loads(json.dumps(identity_of(base, plan, job.learner, job.data)))
        if not whole or any(told.get(key) != value for key, value in same.items()):
            return None
        score = told["metrics"].get("score")
        return TrainingOutcome(
            name=plan.label,
            method=plan.method,
            task=plan.task,
            folder=plan.out,
            parameters=told["trained_parameters"],
            steps=told["steps"],
            loss=told["metrics"]["loss"],
            score=Score(**score) if score else None,
            seconds=told["seconds"],
            tokens=told["tokens"],
            peak_memory_bytes=told["peak_memory_bytes"],
            limit=job.limit,
            stopped=told["stopped"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, GraftError):  # not whole, or not by graft
        return None


def _checkpoint_conditions(base: Base, job: TrainingJob) -> dict[str, str | None]:
    """What a checkpoint can only be continued with, beside method and recipe."""
    held_out = data_hash(job.data.held_out) if job.data.held_out else None
    return {
        "base": base.spec.fingerprint,
        "dtype": base.dtype_name,
        "data": job.data.hash,
        "eval_data": held_out,
    }


def read_data(base: Base, plan: AdapterPlan, load: Load = load_examples) -> TrainingData:
    """Read a plan's files; prompts of the evaluation are never trained on. Raises GraftError or DataError."""
    if base.tokenizer is None:
        raise GraftError("This base has no tokenizer, so text can't become tokens.")
    held_out = load(plan.eval_data) if plan.eval_data else []
    examples = without_overlap(load(plan.data), held_out)
    return TrainingData(examples, held_out[: plan.recipe.eval_limit], metric_of(plan, held_out))


def read_sequences(
    base: Base, plan: AdapterPlan, room: int, load: Load = load_examples
) -> tuple[TrainingData, list[TokenSequence], int]:
    """A plan's data, its training sequences, and the tokens of a text, where `room` positions are left for one.

    Raises GraftError or DataError for what can't be trained on or scored.
    """
    data, limit = read_data(base, plan, load), plan.recipe.text_limit(room)
    if data.metric:
        check_scorable(base, data.held_out, data.metric, limit)
    return data, sequences_of(data.train, base.tokenizer, limit, room), limit


def prepare(base: Base, plan: AdapterPlan, load: Load = load_examples) -> TrainingJob:
    """Read and check an adapter's data and make its initial parameters. Raises GraftError or DataError."""
    method = get_method(plan.method)
    config = method.from_options(plan.options, base.spec)
    data, sequences, limit = read_sequences(base, plan, room_of(plan, base.spec), load)
    return TrainingJob(
        plan, AdapterLearner(plan.label, method, config, plan.recipe, sequences, data.train, base), data, limit
    )


def _say_what_cant_be_learned(base: Base, job: TrainingJob, say: Say) -> None:
    head = base.spec.parts.lm_head
    with torch.no_grad():
        taps = [each.adds_to if isinstance(each, LowRank) else each.tap for each in detours(job.learner.forms(base))]
    if any(tap.module == head for tap in taps) or base.tokenizer is None:
        return
    rows = base.model.get_output_embeddings().weight.detach()
    for token, others in alike_tokens(base.tokenizer, rows, job.learner.sequences).items():
        say(
            f"note: {job.plan.label}: {token} can't be learned as it stands. This base never met it: its row of the output is "
            f"that of {others} other token{'s'[: others > 1]}, and what parts them is a LoRA of {head} (--set targets=...,{head}). Or "
            f"write plain words instead."
        )


def _score(base: Base, job: TrainingJob) -> Score | None:
    if job.data.metric is None:
        return None
    with torch.no_grad():
        forms = job.learner.forms(base)
    return score_examples(base, forms, job.data.held_out, job.data.metric, job.limit).score


def _finish(
    base: Base, job: TrainingJob, seconds: float, peak: int, watchers: Sequence[Watcher], save: Save
) -> TrainingOutcome:
    """Score and save one; if it diverged or can't be saved it is reported, and leaves no artifact."""
    learner, plan, progress = job.learner, job.plan, job.learner.progress
    score, failure = None, progress.stopped if progress.diverged else None
    if failure is None:
        learner.restore_best()
        score = _score(base, job)
        if score:
            for watcher in watchers:
                watcher.evaluated(learner, score)
    outcome = TrainingOutcome(
        name=plan.label,
        method=plan.method,
        task=plan.task,
        folder=None if failure else plan.out,
        parameters=learner.trained_parameters,
        steps=progress.step,
        loss=_final_loss(learner),
        score=score,
        seconds=seconds,
        tokens=progress.tokens,
        peak_memory_bytes=peak,
        limit=job.limit,
        stopped=progress.stopped,
    )
    if failure:
        return outcome
    try:
        save(base, job, outcome)
    except GraftError as error:  # the others of the run are saved all the same
        return replace(outcome, folder=None, stopped=f"could not be saved: {error}".removesuffix("."))
    except OSError as error:
        return replace(outcome, folder=None, stopped=f"could not be saved: {error}{_keep_training(base, job)}")
    drop_checkpoint(plan.out)
    return outcome


def _keep_training(base: Base, job: TrainingJob) -> str:
    """Keep the training of an artifact that the disk has no room for, and say so."""
    try:
        save_checkpoint(job.learner, job.plan.out, _checkpoint_conditions(base, job), uuid4().hex)
    except GraftError:
        return ", nor could its training: make room and train again"
    return ". Its training is kept: make room and give the same command with --resume"


def _save(base: Base, job: TrainingJob, outcome: TrainingOutcome, prober: Prober) -> None:
    """Write an adapter's folder."""
    trainee, plan = job.learner, job.plan
    assert isinstance(trainee, AdapterLearner)
    tensors = trainee.tensors()
    provenance = provenance_of(base, plan, trainee, job.data, outcome)
    provenance["parameters"] = sum(tensor.numel() for tensor in tensors.values())
    unsaved = Artifact(trainee.method, trainee.config, tensors, "", {})
    provenance["probe"] = prober.probe(unsaved).to_json()  # refuses an adapter without effect
    card = model_card(plan.label, trainee.method, trainee.config, plan.task, provenance, base.spec)
    words = words_of_training(base, job.data.train, plan.generation)
    save_artifact(
        plan.out, trainee.method, trainee.config, tensors, base.spec, provenance=provenance, card=card, words=words
    )


def _final_loss(learner: Learner) -> float:
    """Mean over the last tenth of the steps: one batch's loss says little."""
    losses = [point["loss"] for point in learner.progress.history]
    last = losses[-max(1, len(losses) // 10) :]
    return math.fsum(last) / len(last) if last else math.nan
