"""The trainer: examples -> artifacts. One run trains one or many adapters on one frozen base.

`train`, `AdapterPlan`, `TrainConfig` and `RunConfig` are the Python interface; they load torch when first used.
"""

import importlib
from typing import Any

from graft.hub.machine.openmp_wait import wait_briefly

_PUBLIC = {
    "train": "graft.trainer.training.run",
    "TrainingOutcome": "graft.trainer.learners.job",
    "AdapterPlan": "graft.trainer.plan.plan",
    "TrainConfig": "graft.trainer.plan.config",
    "RunConfig": "graft.trainer.plan.config",
}
__all__ = ["AdapterPlan", "RunConfig", "TrainConfig", "TrainingOutcome", "train"]

wait_briefly()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"graft.trainer has no {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
