"""What learns in a run: weights, optimiser, schedule, order of data, progress. Everything of one, shared with none.

An `AdapterLearner` and a `Baseline` (the base's own weights) are the two kinds. Knows nothing of forwards.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from graft.hub.adapters.serving_forms import Form
from graft.hub.base.model import Base
from graft.hub.evaluation.metrics import Score
from graft.trainer.data.batches import Order
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.plan.config import TrainConfig

_BETAS = (0.9, 0.999)


@dataclass
class Progress:
    """What a learner has been through. One point of `history` a step."""

    step: int = 0
    tokens: int = 0  # trained on, virtual ones not counted
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_value: float | None = None
    stopped: str | None = None  # why it ended before its last step
    diverged: bool = False  # stopped because its loss or gradient was not finite


class LearnerFacts(TypedDict):
    """What a checkpoint keeps of a learner beside its tensors."""

    progress: dict[str, Any]  # of a `Progress`
    drawn: int  # batches of the epoch


class Learner(ABC):
    """`weights`: float32 leaves that AdamW steps. `virtual`: rows of a soft prompt."""

    def __init__(
        self,
        name: str,
        recipe: TrainConfig,
        learning_rate: float,
        weights: list[Tensor],
        sequences: list[TokenSequence],
        device: torch.device,
    ):
        self.name, self.recipe, self.learning_rate, self.weights = name, recipe, learning_rate, weights
        self.sequences = sequences
        self.total_steps = recipe.steps_over(len(sequences))
        self.progress = Progress()
        self.virtual = 0
        self.dropout = torch.Generator(device).manual_seed(recipe.seed)
        self._optimizer = torch.optim.AdamW(
            weights, lr=learning_rate, betas=_BETAS, weight_decay=recipe.weight_decay, fused=True
        )
        self._best: list[Tensor] | None = None
        self._order = Order(sequences, recipe.batch_size, recipe.seed)

    @abstractmethod
    def forms(self, base: Base) -> tuple[Form, ...]:
        """The serving forms at this moment, differentiable."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """What it is, for provenance and to tell whether a checkpoint belongs to it."""

    @abstractmethod
    def gather_gradients(self) -> None:
        """Bring the step's gradients to `weights`."""

    @abstractmethod
    def weights_changed(self) -> None:
        """Called after every change of `weights`."""

    @property
    def done(self) -> bool:
        return self.progress.stopped is not None or self.progress.step >= self.total_steps

    @property
    def trained_parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights)

    def next_batch(self) -> list[TokenSequence]:
        return self._order.next()

    def update(self, loss: float, tokens: int) -> None:
        """One optimiser step from the step's gradients; one that is not finite ends the training.

        `loss`: mean over the completion tokens of the step; `tokens`: all of the step's.
        """
        self.gather_gradients()
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            self.progress.diverged = True
            self.progress.stopped = f"diverged: the {what} of step {self.progress.step + 1} is not finite"
            self._optimizer.zero_grad()
            return
        if norm > self.recipe.max_grad_norm:
            for gradient in gradients:
                gradient.mul_(self.recipe.max_grad_norm / norm)
        rate = self.learning_rate * rate_factor(self.recipe, self.progress.step, self.total_steps)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.weights_changed()
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.history.append({"step": self.progress.step, "loss": loss, "grad_norm": norm, "rate": rate})

    def evaluated(self, score: Score) -> None:
        """Note an evaluation; keep the weights of the best, stop when patience is at its end."""
        progress = self.progress
        progress.evaluations.append({"step": progress.step, "value": score.value})
        if progress.best_value is None or score.value > progress.best_value:
            progress.best_value = score.value
            self._best = [weight.detach().clone() for weight in self.weights]
        values = [point["value"] for point in progress.evaluations]
        if self.recipe.patience and len(values) - 1 - values.index(max(values)) >= self.recipe.patience:
            progress.stopped = f"stopped early: no better score in {self.recipe.patience} evaluations"

    def restore_best(self) -> None:
        """Go back to the weights with the best score, where there were evaluations on the way."""
        if self._best is not None:
            self._set(self.weights, self._best)

    def state(self) -> tuple[dict[str, Tensor], LearnerFacts]:
        """(tensors, JSON) from which `load_state` continues bit for bit."""
        epoch_start, drawn = self._order.place()
        tensors = {"dropout": self.dropout.get_state(), "order": epoch_start}
        for i, weight in enumerate(self.weights):
            tensors[f"weight.{i}"] = weight.detach()
            moments = self._optimizer.state.get(weight, {})
            tensors |= {f"adam.{i}.{key}": value for key, value in moments.items()}
            if self._best is not None:
                tensors[f"best.{i}"] = self._best[i]
        return tensors, {"progress": asdict(self.progress), "drawn": drawn}

    def load_state(self, tensors: Mapping[str, Tensor], facts: LearnerFacts) -> None:
        """Continue from `state()`."""
        self.dropout.set_state(tensors["dropout"])
        self._order.go_to(tensors["order"], facts["drawn"])
        self.progress = Progress(**facts["progress"])
        indices = range(len(self.weights))
        self._set(self.weights, [tensors[f"weight.{i}"] for i in indices])
        for i, weight in enumerate(self.weights):
            prefix = f"adam.{i}."
            moments = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if moments:
                self._optimizer.state[weight] = {key: v.clone().to(weight.device) for key, v in moments.items()}
        if "best.0" in tensors:
            self._best = [tensors[f"best.{i}"].to(weight.device) for i, weight in enumerate(self.weights)]

    def _set(self, weights: list[Tensor], values: list[Tensor]) -> None:
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)
        self.weights_changed()


def rate_factor(recipe: TrainConfig, step: int, total: int) -> float:
    """The schedule: the fraction of the peak rate at `step` (from 0) of `total`."""
    warm = math.ceil(recipe.warmup * total)
    if step < warm:
        return (step + 1) / warm
    if recipe.schedule == "constant":
        return 1.0
    left = (step - warm) / max(1, total - warm)
    return 1 - left if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * left))
