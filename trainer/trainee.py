"""One adapter in training: its parameters, optimiser, schedule, order of data and random draws.

Everything that makes a result is its own, nothing is shared with the adapters that train beside it. Master
weights are float32 in one flat tensor, whose pieces are the method's named parameters: one optimiser step, one
norm, one check for NaN, one thing to save. Knows nothing of the base's forward.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from graft.hub.base import Base
from graft.hub.examples import Example, labels_of
from graft.hub.forms import Form
from graft.hub.methods import InitContext, Method
from graft.hub.metrics import Score
from graft.trainer.config import TrainConfig
from graft.trainer.data import Order, Sequence, virtual_rows

_BETAS = (0.9, 0.999)
_INIT_TEXTS = 64  # training prompts that an initialisation may start from


@dataclass
class Progress:
    """What a trainee has been through. One point of `history` a step."""

    step: int = 0
    tokens: int = 0  # trained on, virtual ones not counted
    history: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_value: float | None = None
    stopped: str | None = None  # why it ended before its last step
    diverged: bool = False  # stopped because its loss or gradient was not finite


class Trainee:
    """An adapter between its initialisation and its artifact."""

    def __init__(
        self,
        name: str,
        method: Method,
        config: Any,
        recipe: TrainConfig,
        sequences: list[Sequence],
        examples: list[Example],
        base: Base,
    ):
        self.name, self.method, self.config, self.recipe = name, method, config, recipe
        self.learning_rate = recipe.learning_rate or method.learning_rate
        self.sequences = sequences
        self.total_steps = recipe.steps or math.ceil(recipe.epochs * math.ceil(len(sequences) / recipe.batch_size))
        self.progress = Progress()
        self.dropout = torch.Generator(base.device).manual_seed(recipe.seed)
        start = _initial(method, config, recipe.seed, sequences, examples, base)
        self._shapes = {name: tensor.shape for name, tensor in start.items()}
        self.flat = torch.cat([tensor.reshape(-1).float() for tensor in start.values()]).requires_grad_()
        self._optimizer = torch.optim.AdamW(
            [self.flat], lr=self.learning_rate, betas=_BETAS, weight_decay=recipe.weight_decay, fused=True
        )
        self._best: Tensor | None = None
        self._order = Order(sequences, recipe.batch_size, recipe.seed)
        with torch.no_grad():
            rows = virtual_rows(self.forms(base))
        self.virtual = 0 if rows is None else rows.shape[0]  # input rows before each of its sequences

    @property
    def done(self) -> bool:
        return self.progress.stopped is not None or self.progress.step >= self.total_steps

    @property
    def trained_parameters(self) -> int:
        return self.flat.numel()

    def parameters(self) -> Mapping[str, Tensor]:
        """The method's parameters as pieces of the flat tensor; gradients flow back into it."""
        pieces = self.flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def tensors(self) -> Mapping[str, Tensor]:
        """The artifact's tensors at this moment, what is only there for training run and left behind."""
        with torch.no_grad():
            encoded = self.method.encode(self.config, self.parameters())
            return {name: tensor.detach().clone() for name, tensor in encoded.items()}

    def forms(self, base: Base) -> tuple[Form, ...]:
        """The serving forms at this moment, differentiable."""
        return self.method.fold(self.config, self.method.encode(self.config, self.parameters()), base)

    def next_batch(self) -> list[Sequence]:
        return self._order.next()

    def update(self, loss: float, tokens: int) -> None:
        """One optimiser step from the gradient in `flat.grad`; a gradient that is not finite ends the training.

        `loss`: mean over the completion tokens of the step; `tokens`: all of the step's.
        """
        norm = float(self.flat.grad.norm())
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            self.progress.diverged = True
            self.progress.stopped = f"diverged: the {what} of step {self.progress.step + 1} is not finite"
            self.flat.grad = None
            return
        if norm > self.recipe.max_grad_norm:
            self.flat.grad.mul_(self.recipe.max_grad_norm / norm)
        rate = self.learning_rate * rate_factor(self.recipe, self.progress.step, self.total_steps)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self.flat.grad = None
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.history.append({"step": self.progress.step, "loss": loss, "grad_norm": norm, "rate": rate})

    def evaluated(self, found: Score) -> None:
        """Note an evaluation; keep the parameters of the best, stop when patience is at its end."""
        progress = self.progress
        progress.evaluations.append({"step": progress.step, "value": found.value})
        if progress.best_value is None or found.value > progress.best_value:
            progress.best_value = found.value
            self._best = self.flat.detach().clone()
        since = [point["value"] for point in progress.evaluations]
        if self.recipe.patience and len(since) - 1 - since.index(max(since)) >= self.recipe.patience:
            progress.stopped = f"stopped early: no better score in {self.recipe.patience} evaluations"

    def restore_best(self) -> None:
        """Go back to the parameters with the best score, where there were evaluations on the way."""
        if self._best is not None:
            with torch.no_grad():
                self.flat.copy_(self._best)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, JSON) from which `load_state` continues bit for bit."""
        inner = self._optimizer.state.get(self.flat, {})
        epoch_start, drawn = self._order.place()
        tensors = {"flat": self.flat.detach(), "dropout": self.dropout.get_state(), "order": epoch_start}
        tensors |= {f"adam.{key}": value for key, value in inner.items()}
        if self._best is not None:
            tensors["best"] = self._best
        return tensors, {"progress": asdict(self.progress), "drawn": drawn}

    def load_state(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        with torch.no_grad():
            self.flat.copy_(tensors["flat"])
        self.dropout.set_state(tensors["dropout"])
        inner = {key.removeprefix("adam."): value for key, value in tensors.items() if key.startswith("adam.")}
        if inner:
            device = self.flat.device
            self._optimizer.state[self.flat] = {key: value.clone().to(device) for key, value in inner.items()}
        self._best = tensors["best"].to(self.flat.device) if "best" in tensors else None
        self.progress = Progress(**facts["progress"])
        self._order.go_to(tensors["order"], facts["drawn"])


def rate_factor(recipe: TrainConfig, step: int, total: int) -> float:
    """The schedule: the fraction of the peak rate at `step` (from 0) of `total`."""
    warm = math.ceil(recipe.warmup * total)
    if step < warm:
        return (step + 1) / warm
    if recipe.schedule == "constant":
        return 1.0
    left = (step - warm) / max(1, total - warm)
    return 1 - left if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * left))


def _initial(method, config, seed: int, sequences, examples, base: Base) -> dict[str, Tensor]:
    texts = tuple(sequence.ids[: sequence.answer_start] for sequence in sequences[:_INIT_TEXTS])
    generator = torch.Generator().manual_seed(seed)
    return method.init(config, InitContext(base, generator, texts, labels_of(examples)))
