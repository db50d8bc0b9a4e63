"""Gradient checkpointing: keep a layer's input only and compute the layer again in the backward pass.

Works with every method: what a prefix puts into the attention is an outer tensor of the layer, and the adapters'
dropout generators are put back for the second time.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from graft.hub.base.model import Base


@contextmanager
def recompute_layers(base: Base, on: bool, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Within the context the base's decoder layers are recomputed in the backward pass (if `on`)."""
    layers = list(base.model.get_submodule(base.spec.parts.layers).children()) if on else []
    for layer in layers:
        same_draws = partial(_same_draws, generators)
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=same_draws)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own method shows again


def _same_draws(
    generators: Sequence[torch.Generator],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a layer's forward and of its recomputation."""
    return nullcontext(), _draw_from([generator.get_state() for generator in generators], generators)


@contextmanager
def _draw_from(states: list[torch.Tensor], generators: Sequence[torch.Generator]) -> Iterator[None]:
    later = [generator.get_state() for generator in generators]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in zip(generators, later, strict=True):
            generator.set_state(state)
