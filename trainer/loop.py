"""Training N adapters on one frozen base: every step is one batched forward and backward over all of them.

An adapter alone is N = 1. Each brings its own batch; the sequences are packed by adapter, cut into passes where
they exceed the memory's rows, and the gradients flow back into each adapter's own flat parameters. Knows
nothing of files or terminals: a `Watcher` is told what happens.
"""

import time
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from graft.hub.base import Base
from graft.hub.metrics import Score
from graft.trainer.checkpointing import recomputing
from graft.trainer.config import RunConfig
from graft.trainer.data import Pack, Sequence, passes
from graft.trainer.passes import running
from graft.trainer.trainee import Trainee


class Watcher(Protocol):
    """Whoever wants to know: a progress bar, a log, a checkpoint writer."""

    def stepped(self, trainee: Trainee, seconds: float) -> None: ...

    def evaluated(self, trainee: Trainee, score: Score) -> None: ...

    def round_ended(self, trainees: list[Trainee]) -> None:
        """All adapters have made their step: a moment from which training can be continued."""
        ...


def train_all(
    base: Base,
    trainees: list[Trainee],
    run: RunConfig,
    watchers: list[Watcher],
    evaluate: Callable[[Trainee], Score | None],
) -> None:
    """Train until every adapter is done. `evaluate` scores one as it stands (None: it has no evaluation data)."""
    with recomputing(base, run.checkpoint_layers, [trainee.dropout for trainee in trainees]):
        while active := [trainee for trainee in trainees if not trainee.done]:
            started = time.monotonic()
            train_step(base, active, run)
            seconds = time.monotonic() - started
            for trainee in active:
                for watcher in watchers:
                    watcher.stepped(trainee, seconds)
                _maybe_evaluate(trainee, evaluate, watchers)
            for watcher in watchers:
                watcher.round_ended(trainees)


def train_step(base: Base, trainees: list[Trainee], run: RunConfig) -> None:
    """One optimiser step of every adapter."""
    owned = [trainee.next_batch() for trainee in trainees]
    learned = [sum(sequence.learned for sequence in own) for own in owned]
    losses = torch.zeros(len(trainees))
    for part in passes(owned, [trainee.virtual for trainee in trainees], run.rows_per_pass):
        _one_pass(base, trainees, part, learned, losses)
    for trainee, own, loss in zip(trainees, owned, losses.tolist(), strict=True):
        trainee.update(loss, sum(len(sequence.ids) for sequence in own))


def _one_pass(
    base: Base, trainees: list[Trainee], part: list[list[Sequence]], learned: list[int], losses: torch.Tensor
) -> None:
    """Add a pass's gradients to each adapter's own, and its losses to `losses`."""
    present = [i for i, own in enumerate(part) if own]
    forms = [trainees[i].forms(base) for i in present]
    pack = Pack(tuple(tuple(part[i]) for i in present))
    with running(base, pack, forms, [trainees[i].dropout for i in present]) as (logits, rows):
        surprise = F.cross_entropy(logits.float(), rows.targets, reduction="none").split(rows.logit_counts)
        # the mean over an adapter's completion tokens of the whole step, whatever the passes
        shares = [values.sum() / learned[i] for i, values in zip(present, surprise, strict=True)]
        torch.stack(shares).sum().backward()
    losses[present] += torch.stack(shares).detach().cpu()


def _maybe_evaluate(trainee: Trainee, evaluate, watchers: list[Watcher]) -> None:
    every = trainee.recipe.eval_every
    if every is None or trainee.progress.stopped or trainee.progress.step % every:
        return
    found = evaluate(trainee)
    if found is not None:
        trainee.evaluated(found)
        for watcher in watchers:
            watcher.evaluated(trainee, found)
