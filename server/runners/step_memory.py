"""What a step takes while it runs, beside the weights, the cache and the adapters."""

from graft.hub.base.manifest import BaseSpec


def step_bytes(spec: BaseSpec, itemsize: int, rows: int) -> int:
    """At most, of a step of so many rows of numbers of that size: what passes within one layer (csrc/step.h keeps each part apart,
    and the layers share them), and the logits [rows, V] of a prompt that is scored whole. Attention's own scratch is small beside it."""
    parts = {part: spec.modules[spec.module(0, part)] for part in spec.parts.linears}
    read = sum(parts[part].in_features for part in (spec.parts.attn_out, spec.parts.mlp_out))
    within_layer = read + sum(part.out_features for part in parts.values()) + 13 * spec.hidden_size
    return rows * itemsize * (within_layer + spec.vocab_size)
