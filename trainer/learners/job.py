"""A plan with everything read and ready, and what became of it."""

from dataclasses import dataclass
from pathlib import Path

from graft.hub.evaluation.metrics import Metric, Score
from graft.hub.evaluation.task_data import Example, data_hash
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.plan import (
    AdapterPlan,
)


@dataclass(frozen=True)
class TrainingData:
    """What a plan's files hold, read and checked."""

    train: list[Example]
    held_out: list[Example]
    metric: Metric | None  # None without evaluation data

    @property
    def hash(self) -> str:
        return data_hash(self.train)


@dataclass(frozen=True)
class TrainingJob:
    """A plan with everything read and ready."""

    plan: AdapterPlan
    learner: Learner
    data: TrainingData
    limit: int  # tokens of a text, virtual ones not counted


@dataclass(frozen=True)
class TrainingOutcome:
    """What became of one adapter. `folder` is None where nothing was saved, and `stopped` says why."""

    name: str
    method: str
    task: str
    folder: Path | None
    parameters: int  # trained
    steps: int
    loss: float  # mean over the last tenth of the steps
    score: Score | None
    seconds: float  # of the training, which adapters of a run share
    tokens: int
    peak_memory_bytes: int  # of the whole run
    limit: int  # tokens of a text, in training and in its score
    stopped: str | None
