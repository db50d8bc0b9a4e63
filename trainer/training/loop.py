"""Training N adapters on one frozen base: every step is one batched forward and backward over all of them.

An adapter alone is N = 1. Each brings its own batch; the sequences are packed by adapter, cut into passes where
they exceed the memory's rows, and the gradients flow back into each adapter's own flat parameters. Knows
nothing of files or terminals: a `Watcher` is told what happens.
"""

import time
from collections.abc import Callable
from typing import Protocol

import torch

from graft.hub.base.model import Base
from graft.hub.evaluation.metrics import Score
from graft.hub.machine.compute_threads import ComputeThreads
from graft.trainer.data.batches import passes
from graft.trainer.data.packing import Pack
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.forward.checkpointing import recompute_layers
from graft.trainer.forward.cross_entropy import cross_entropy
from graft.trainer.forward.passes import run_pass
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import RunConfig


class Watcher(Protocol):
    """Whoever wants to know: a progress bar, a log, a checkpoint writer."""

    def stepped(self, learner: Learner, seconds: float) -> None: ...

    def evaluated(self, learner: Learner, score: Score) -> None: ...

    def round_ended(self, learners: list[Learner]) -> None:
        """All adapters have made their step: a moment from which training can be continued."""
        ...


def train_all(
    base: Base,
    learners: list[Learner],
    run: RunConfig,
    watchers: list[Watcher],
    evaluate: Callable[[Learner], Score | None],
) -> None:
    """Train until every adapter is done. `evaluate` scores one as it stands (None: it has no evaluation data)."""
    with (
        recompute_layers(base, run.checkpoint_layers, [learner.dropout for learner in learners]),
        ComputeThreads() as threads,
    ):
        while active := [learner for learner in learners if not learner.done]:
            started = time.monotonic()
            threads.fit()
            train_step(base, active, run)
            seconds = time.monotonic() - started
            for learner in active:
                for watcher in watchers:
                    watcher.stepped(learner, seconds)
                _maybe_evaluate(learner, evaluate, watchers)
            for watcher in watchers:
                watcher.round_ended(learners)


def train_step(base: Base, learners: list[Learner], run: RunConfig) -> None:
    """One optimiser step of every learner on its next batch."""
    step_on(base, learners, [learner.next_batch() for learner in learners], run)


def step_on(base: Base, learners: list[Learner], owned: list[list[TokenSequence]], run: RunConfig) -> None:
    """One optimiser step of every learner on its own sequences `owned[i]`, in as few passes as `run` allows."""
    learned = [sum(sequence.learned for sequence in own) for own in owned]
    losses = torch.zeros(len(learners))
    for part in passes(owned, [learner.virtual for learner in learners], run.rows_per_pass):
        _one_pass(base, learners, part, learned, losses)
    for learner, own, loss in zip(learners, owned, losses.tolist(), strict=True):
        learner.update(loss, sum(len(sequence.ids) for sequence in own))


def _one_pass(
    base: Base, learners: list[Learner], part: list[list[TokenSequence]], learned: list[int], losses: torch.Tensor
) -> None:
    """Add a pass's gradients to each adapter's own, and its losses to `losses`."""
    present = [i for i, own in enumerate(part) if own]
    forms = [learners[i].forms(base) for i in present]
    pack = Pack(tuple(tuple(part[i]) for i in present))
    with run_pass(base, pack, forms, [learners[i].dropout for i in present]) as (logits, rows):
        values = cross_entropy(logits, rows.targets).split(rows.logit_counts)
        # the mean over an adapter's completion tokens of the whole step, whatever the passes
        shares = [own.sum() / learned[i] for i, own in zip(present, values, strict=True)]
        torch.stack(shares).sum().backward()
    losses[present] += torch.stack(shares).detach().cpu()


def _maybe_evaluate(learner: Learner, evaluate: Callable[[Learner], Score | None], watchers: list[Watcher]) -> None:
    every = learner.recipe.eval_every
    if every is None or learner.progress.stopped or learner.progress.step % every:
        return
    score = evaluate(learner)
    if score is not None:
        learner.evaluated(score)
        for watcher in watchers:
            watcher.evaluated(learner, score)
