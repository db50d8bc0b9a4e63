"""The taps of a Llama-like decoder as the kernels number them.

The order is that of csrc/model.h (`Tap`, `HeadTap`), which is the order in which a step passes them: a
detour may read what has been passed in its own layer, nothing else. Torch-free.
"""

from dataclasses import dataclass
from typing import Literal

from graft.hub.base.hook_points import Tap
from graft.hub.base.manifest import BaseSpec

LAYER_TAPS = 20
HEAD_TAPS = 3
_Side = Literal["in", "out"]


@dataclass(frozen=True)
class TapPlace:
    """Where a tap lies. Layer `layers` is what follows the last layer: final norm and output projection."""

    layer: int
    index: int
    changeable: bool  # whether a detour may change the value there (where not, it can only be read)

    @property
    def number(self) -> int:
        return self.layer * LAYER_TAPS + self.index


def count(spec: BaseSpec) -> int:
    """How many taps the kernels have for a base."""
    return spec.num_layers * LAYER_TAPS + HEAD_TAPS


def places(spec: BaseSpec) -> dict[Tap, TapPlace]:
    """Every tap the kernels pass, by its name in the base."""
    by_tap: dict[Tap, TapPlace] = {}
    for layer in range(spec.num_layers):
        for (part, side), (index, changeable) in _layer(spec).items():
            by_tap[Tap(spec.module(layer, part), side)] = TapPlace(layer, index, changeable)
    norm, project = spec.parts.final_norm, spec.parts.lm_head
    head: list[tuple[str, _Side]] = [(norm, "out"), (project, "in"), (project, "out")]
    by_tap |= {Tap(module, side): TapPlace(spec.num_layers, i, True) for i, (module, side) in enumerate(head)}
    return by_tap


def _layer(spec: BaseSpec) -> dict[tuple[str, _Side], tuple[int, bool]]:
    """(part, side) -> (index in the layer, changeable)."""
    parts = spec.parts
    table: dict[tuple[str, _Side], tuple[int, bool]] = {
        (parts.attn_norm, "in"): (0, False),
        (parts.attn_norm, "out"): (1, True),
        **{(name, "in"): (2 + i, True) for i, name in enumerate(parts.queries)},
        **{(name, "out"): (5 + i, True) for i, name in enumerate(parts.queries)},
        (parts.attn_out, "in"): (8, True),
        (parts.attn_out, "out"): (9, True),
        (parts.mlp_norm, "in"): (11, False),
        (parts.mlp_norm, "out"): (12, True),
        **{(name, "in"): (13 + i, True) for i, name in enumerate(parts.mlp_in)},
        **{(name, "out"): (15 + i, True) for i, name in enumerate(parts.mlp_in)},
        (parts.mlp_out, "in"): (17, True),
        (parts.mlp_out, "out"): (18, True),
    }
    if parts.attn_post_norm:
        table[(parts.attn_post_norm, "out")] = (10, True)
    if parts.mlp_post_norm:
        table[(parts.mlp_post_norm, "out")] = (19, True)
    return table
