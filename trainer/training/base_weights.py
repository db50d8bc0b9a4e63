"""Full fine-tuning and last-k-layers: what PEFT is compared with. They change the base itself.

`method=full` trains every weight, `method=last-layers` the last k decoder layers and the final norm (the cheap
idea that PEFT replaces). Masters, gradients and both Adam moments are float32, as the literature counts them. What
they leave is a base folder of its own, as large as the base: it can be served, never mixed with others.
"""

import json
from collections.abc import Sequence

import torch
from torch import nn
from transformers import CONFIG_NAME

from graft.hub.adapters.serving_forms import Form
from graft.hub.base.manifest import record
from graft.hub.base.model import Base, describe
from graft.hub.errors import GraftError
from graft.hub.evaluation.task_data import load_examples
from graft.hub.machine.atomic_files import write_folder_whole
from graft.trainer.artifact.provenance import provenance_of
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.learners.job import TrainingJob, TrainingOutcome
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan, baseline_layers
from graft.trainer.training.loop import Watcher
from graft.trainer.training.run import Load, Say, read_sequences, run_jobs, say_nothing

LEARNING_RATES = {"full": 2e-5, "last-layers": 1e-4}


class Baseline(Learner):
    """The base's own weights as what learns. Where the base computes in bf16, float32 masters stand behind it."""

    def __init__(self, plan: AdapterPlan, layers: int | None, sequences: list[TokenSequence], base: Base):
        self.method, self.layers = plan.method, layers
        self._own = trained_weights(base, layers)
        for weight in self._own:
            weight.requires_grad_(True)
        masters = [
            weight if weight.dtype == torch.float32 else weight.detach().float().requires_grad_()
            for weight in self._own
        ]
        rate = plan.recipe.learning_rate or LEARNING_RATES[plan.method]
        super().__init__(plan.label, plan.recipe, rate, masters, sequences, base.device)

    def forms(self, base: Base) -> tuple[Form, ...]:
        return ()

    def describe(self) -> dict[str, object]:
        return {"method": self.method, "variant": "", "config": {"layers": self.layers}}

    def gather_gradients(self) -> None:
        for master, weight in zip(self.weights, self._own, strict=True):
            gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = None
            master.grad = gradient.float()

    def weights_changed(self) -> None:
        with torch.no_grad():
            for master, weight in zip(self.weights, self._own, strict=True):
                if master is not weight:
                    weight.copy_(master)


def trained_weights(base: Base, layers: int | None) -> list[nn.Parameter]:
    """All of the base's parameters, or those of its last `layers` layers and final norm."""
    if layers is None:
        return list(base.model.parameters())
    parts = base.spec.parts
    stack = base.model.get_submodule(parts.layers)
    chosen = [*list(stack.children())[-layers:], base.model.get_submodule(parts.final_norm)]
    return [weight for module in chosen for weight in module.parameters()]


def train_baseline(
    base: Base,
    plan: AdapterPlan,
    run: RunConfig | None = None,
    *,
    watchers: Sequence[Watcher] = (),
    resume: bool = False,
    overwrite: bool = True,
    say: Say = say_nothing,
    load: Load = load_examples,
) -> TrainingOutcome:
    """Train `base` itself (it is no longer the base it was) and write it to the plan's folder.

    Raises GraftError for options that the baseline does not have.
    """
    data, sequences, limit = read_sequences(base, plan, base.spec.max_positions, load)
    job = TrainingJob(plan, make_baseline(base, plan, sequences), data, limit)
    (outcome,) = run_jobs(base, [job], run or RunConfig(), watchers, resume, _save, overwrite, say)
    return outcome


def check_baseline(base: Base, plan: AdapterPlan) -> None:
    """Raises GraftError or DataError for what `train_baseline` would refuse; changes nothing."""
    baseline_layers(plan.method, plan.options, base.spec)
    read_sequences(base, plan, base.spec.max_positions)


def make_baseline(base: Base, plan: AdapterPlan, sequences: list[TokenSequence]) -> Baseline:
    """The learner of a plan. Raises GraftError for what is no baseline, and for options it does not have."""
    if plan.method not in BASELINES:
        raise GraftError(f"{plan.method} is no baseline; those are {', '.join(BASELINES)}.")
    return Baseline(plan, baseline_layers(plan.method, plan.options, base.spec), sequences, base)


def _save(base: Base, job: TrainingJob, outcome: TrainingOutcome) -> None:
    """Write the changed base as a base folder; it is another base now, under a fingerprint of its own."""
    provenance = provenance_of(base, job.plan, job.learner, job.data, outcome)
    with write_folder_whole(job.plan.out, last=[CONFIG_NAME]) as staging:
        (staging / "graft.json").write_text(json.dumps(provenance, indent=2))
        base.model.save_pretrained(staging)
        assert base.tokenizer is not None  # its texts were made tokens
        base.tokenizer.save_pretrained(staging)
        record(staging, describe(base.model, base.tokenizer, None))
