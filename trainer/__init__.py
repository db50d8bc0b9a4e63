"""The trainer: examples -> artifacts. One run trains one or many adapters on one frozen base.

`train`, `AdapterPlan`, `TrainConfig` and `RunConfig` are the Python interface; they load torch when first used.
"""

import importlib
from typing import TYPE_CHECKING

from graft.hub.machine.openmp_wait import wait_briefly

if TYPE_CHECKING:
    from graft.trainer.learners.job import TrainingOutcome
    from graft.trainer.plan.config import RunConfig, TrainConfig
    from graft.trainer.plan.plan import AdapterPlan
    from graft.trainer.training.run import train

_PUBLIC = {
    "train": "graft.trainer.training.run",
    "TrainingOutcome": "graft.trainer.learners.job",
    "AdapterPlan": "graft.trainer.plan.plan",
    "TrainConfig": "graft.trainer.plan.config",
    "RunConfig": "graft.trainer.plan.config",
}
__all__ = ["AdapterPlan", "RunConfig", "TrainConfig", "TrainingOutcome", "train"]

wait_briefly()


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"graft.trainer has no {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
