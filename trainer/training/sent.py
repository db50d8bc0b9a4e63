"""One training of a plan on another machine, which shares no disk with this one.

What there is of it travels to a worker: examples, checkpoint, the folder to be continued. What became of it comes back:
artifact, or checkpoint. Only who sends them keeps anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import CONFIG_NAME

from graft.hub.adapters.validation import PROVENANCE
from graft.hub.base.model import Base
from graft.hub.base.wanted_base import WantedBase, kept_base
from graft.hub.errors import GraftError
from graft.hub.evaluation.metrics import Score
from graft.hub.evaluation.task_data import Example, load_examples
from graft.hub.machine.folder_files import Files, read_files, write_files
from graft.trainer.learners.job import TrainingOutcome
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan, training_folder
from graft.trainer.process.allocator import keep_freed_memory
from graft.trainer.training.base_weights import train_baseline
from graft.trainer.training.checkpoints import kept_step
from graft.trainer.training.run import train


@dataclass(frozen=True)
class SentRun:
    """What all trainings of a run share."""

    base: WantedBase
    run: RunConfig
    examples: Mapping[Path, list[Example]]  # of each file that a plan names
    resume: bool = False
    overwrite: bool = True

    def load(self, path: Path) -> list[Example]:
        return self.examples[path]


@dataclass(frozen=True)
class SentPlan:
    """One plan, its checkpoint, and what lies in its output folder."""

    plan: AdapterPlan
    checkpoint: Files
    there: Files


@dataclass(frozen=True)
class Trained:
    """A training that has ended. `files` of its folder: None where it was finished before, and nothing is to be written.
    `checkpoint`: of one that could not be saved."""

    outcome: TrainingOutcome
    files: Files | None
    checkpoint: Files
    said: tuple[str, ...]


@dataclass(frozen=True)
class Begun:
    """A training that goes on from its checkpoint."""

    step: int
    checkpoint: Files
    said: tuple[str, ...]


def examples_of(plans: Sequence[AdapterPlan]) -> dict[Path, list[Example]]:
    """Of each file that they name. Raises DataError."""
    named = {path for plan in plans for path in (plan.data, plan.eval_data) if path is not None}
    return {path: load_examples(path) for path in sorted(named)}


def sent_plan(plan: AdapterPlan, *, resume: bool) -> SentPlan:
    """As it lies on this disk now. Of a baseline's folder the weights are sent as empty files: that they are there is enough."""
    there = read_files(plan.out) if resume else {}
    if plan.method in BASELINES:
        there = {name: held if name in (PROVENANCE, CONFIG_NAME) else b"" for name, held in there.items()}
    return SentPlan(plan, read_files(training_folder(plan.out)), there)


def train_sent(run: SentRun, sent: SentPlan) -> Trained | Begun:
    """On a worker: train until the end, to the next checkpoint, or until interrupted. Raises GraftError as `train`."""
    keep_freed_memory()
    with TemporaryDirectory(prefix="graft-train-") as work:
        out = Path(work, sent.plan.out.resolve().name)
        write_files(sent.checkpoint, training_folder(out))
        write_files(sent.there, out)
        said: list[str] = []
        try:
            outcome = _train(run, replace(sent.plan, out=out, name=sent.plan.label), bool(sent.checkpoint), said)
        except KeyboardInterrupt:
            return Begun(kept_step(out), read_files(training_folder(out)), _placed(said, out, sent.plan.out))
        except GraftError as error:
            error.args = _placed([str(error)], out, sent.plan.out)
            raise
        files = read_files(out)
        (stopped,) = _placed([outcome.stopped or ""], out, sent.plan.out)
        folder = outcome.folder and sent.plan.out
        return Trained(
            replace(outcome, folder=folder, stopped=stopped or None),
            None if files == sent.there else files,
            read_files(training_folder(out)),
            _placed(said, out, sent.plan.out),
        )


class UntilSaved:
    """A watcher that ends a run, as Ctrl-C does, once a checkpoint is written, unless it is done: what was saved can be sent."""

    def __init__(self, every: int):
        self._every, self._rounds = every, 0

    def stepped(self, learner: Learner, seconds: float) -> None: ...

    def evaluated(self, learner: Learner, score: Score) -> None: ...

    def round_ended(self, learners: list[Learner]) -> None:
        self._rounds += 1
        if self._rounds == self._every and not all(learner.done for learner in learners):
            raise KeyboardInterrupt


def base_for(wanted: WantedBase, method: str) -> Base:
    """The base that this worker keeps; a baseline changes its own."""
    if method not in BASELINES:
        return kept_base(wanted)
    kept_base.cache_clear()  # two would need twice the memory
    return wanted.load()


def _train(run: SentRun, plan: AdapterPlan, begun: bool, said: list[str]) -> TrainingOutcome:
    base = base_for(run.base, plan.method)
    begin = partial(train_baseline, base, plan) if plan.method in BASELINES else partial(train, base, [plan])
    outcome = begin(
        run.run,
        watchers=[UntilSaved(run.run.checkpoint_every)] if run.run.checkpoint_every else [],
        resume=run.resume or begun,
        overwrite=run.overwrite,
        say=said.append,
        load=run.load,
    )
    return outcome[0] if isinstance(outcome, list) else outcome


def _placed(texts: Sequence[str], worked: Path, out: Path) -> tuple[str, ...]:
    """What was said of the worker's folder, of the one that is meant."""
    return tuple(text.replace(str(worked), str(out)) for text in texts)
