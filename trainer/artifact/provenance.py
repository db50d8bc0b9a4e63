"""graft.json: all that made an artifact, so that it can be made again and compared."""

import importlib.metadata
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

from graft.hub.base.model import Base
from graft.hub.evaluation.task_data import data_hash, source_name
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.plan import AdapterPlan

if TYPE_CHECKING:
    from graft.trainer.learners.job import TrainingData, TrainingOutcome

_PACKAGES = ("grafthub", "torch", "transformers", "safetensors", "numpy")


def identity_of(base: Base, plan: AdapterPlan, learner: Learner, data: "TrainingData") -> dict[str, object]:
    """What tells one training from another, known before its first step, as JSON."""
    evaluation = None
    if plan.eval_data:
        evaluation = {
            "file": source_name(plan.eval_data),
            "hash": data_hash(data.held_out),
            "examples": len(data.held_out),
        }
    return {
        "format": 1,
        "name": plan.label,
        "task": plan.task,
        "base": {"id": base.spec.id, "fingerprint": base.spec.fingerprint, "quantized": base.quantized},
        "dtype": base.dtype_name,
        **learner.describe(),
        "recipe": asdict(plan.recipe),
        "learning_rate": learner.learning_rate,
        "trained_parameters": learner.trained_parameters,
        "data": {
            "hash": data.hash,
            "train": {"file": source_name(plan.data), "examples": len(data.train)},
            "eval": evaluation,
        },
        "seed": plan.recipe.seed,
    }


def provenance_of(
    base: Base, plan: AdapterPlan, learner: Learner, data: "TrainingData", outcome: "TrainingOutcome"
) -> dict[str, object]:
    """What is known of a finished training, as JSON."""
    return {
        **identity_of(base, plan, learner, data),
        "versions": _versions(),
        "metrics": {"loss": outcome.loss, **({"score": asdict(outcome.score)} if outcome.score else {})},
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "stopped": outcome.stopped,
        "seconds": outcome.seconds,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "history": learner.progress.history,
        "evaluations": learner.progress.evaluations,
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # graft itself, run from a checkout that is not installed
            continue
    return versions
