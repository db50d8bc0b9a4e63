"""Attention, plugged into transformers' own model classes.

Every supported family calls the function registered under ATTENTION with q, k, v after rotation; it hands
them to the `AttentionContext` of the running step, which came along as the keyword `graft`. No mask is ever
registered under the name, so causality, windows and padding are decided by contexts, never by transformers.
"""

from typing import Protocol

from torch import Tensor
from transformers import AttentionInterface

ATTENTION = "graft"


class AttentionContext(Protocol):
    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """query [T, heads, D], key and value [T, kv_heads, D], rows packed -> [T, heads, D]."""
        ...


class _Layer(Protocol):
    """A family's attention, as every one of them is."""

    layer_idx: int


def _attention(
    module: _Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    graft: AttentionContext,
    **_: object,
) -> tuple[Tensor, None]:
    # query [1, heads, T, D]; the remaining keywords are transformers' own (dropout, position_ids, ...)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = graft.attend(
        module.layer_idx,
        query.squeeze(0).transpose(0, 1),
        key.squeeze(0).transpose(0, 1),
        value.squeeze(0).transpose(0, 1),
        scaling=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


AttentionInterface.register(ATTENTION, _attention)
