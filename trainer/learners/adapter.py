"""One adapter in training.

Master weights are float32 in one flat tensor, whose pieces are the method's named parameters: one optimiser step,
one norm, one check for NaN, one thing to save.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from graft.hub.adapters.methods import InitContext, Method
from graft.hub.adapters.serving_forms import Form
from graft.hub.base.model import Base
from graft.hub.evaluation.task_data import Example, labels_of
from graft.trainer.data.packing import virtual_rows
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import TrainConfig

_INIT_TEXTS = 64  # training prompts that an initialisation may start from


class AdapterLearner(Learner):
    """An adapter between its initialisation and its artifact."""

    def __init__(
        self,
        name: str,
        method: Method,
        config: Any,
        recipe: TrainConfig,
        sequences: list[TokenSequence],
        examples: list[Example],
        base: Base,
    ):
        self.method, self.config = method, config
        texts = tuple(sequence.ids[: sequence.answer_start] for sequence in sequences[:_INIT_TEXTS])
        generator = torch.Generator().manual_seed(recipe.seed)
        start = method.init(config, InitContext(base, generator, texts, labels_of(examples)))
        self._shapes = {key: tensor.shape for key, tensor in start.items()}
        self.flat = torch.cat([tensor.reshape(-1).float() for tensor in start.values()]).requires_grad_()
        rate = recipe.learning_rate or method.learning_rate
        super().__init__(name, recipe, rate, [self.flat], sequences, base.device)
        with torch.no_grad():
            rows = virtual_rows(self.forms(base))
        self.virtual = 0 if rows is None else rows.shape[0]

    def parameters(self) -> Mapping[str, Tensor]:
        """The method's parameters as pieces of the flat tensor; gradients flow back into it."""
        pieces = self.flat.split([shape.numel() for shape in self._shapes.values()])
        return {key: piece.view(shape) for (key, shape), piece in zip(self._shapes.items(), pieces, strict=True)}

    def tensors(self) -> Mapping[str, Tensor]:
        """The artifact's tensors at this moment; what is only there for training is run and left behind."""
        with torch.no_grad():
            encoded = self.method.encode(self.config, self.parameters())
            return {key: tensor.detach().clone() for key, tensor in encoded.items()}

    def forms(self, base: Base) -> tuple[Form, ...]:
        return self.method.fold(self.config, self.method.encode(self.config, self.parameters()), base)

    def gather_gradients(self) -> None:
        """The backward has put them into `flat`, through its pieces."""

    def weights_changed(self) -> None:
        """Nothing holds a copy of `flat`."""

    def describe(self) -> dict[str, object]:
        return {
            "method": self.method.name,
            "variant": self.method.variant(self.config),
            "config": asdict(self.config),
        }
