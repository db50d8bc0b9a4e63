"""Attention over packed rows, plugged into transformers' own model classes.

Every supported family calls the function registered under ATTENTION with q, k, v after rotation; it hands
them to the `AttentionContext` of the running step, which came along as the keyword `graft`. No mask is ever
registered under the name, so causality, windows and padding are decided here (and in the server's paged
context), never by transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from graft.hub.forms import CacheRows
from torch import Tensor
from transformers import AttentionInterface

if TYPE_CHECKING:
    from graft.hub.base import Base
    from graft.hub.detours import Step

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


def _attention(
    module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, *, graft, **_
):
    # query [1, heads, T, D]; the remaining keywords are transformers' own (dropout, position_ids, ...)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = graft.attend(
        module.layer_idx,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scaling=scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


AttentionInterface.register(ATTENTION, _attention)


class PackedAttention:
    """Causal attention within each packed sequence; no cache. Differentiable: the trainer's context.

    `prefixes[i]` are key/value rows before sequence i in every layer (prefix tuning), or None.
    """

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[CacheRows | None] | None, device: torch.device):
        self._lengths = list(lengths)
        self._longest = max(lengths)
        self._equal = all(length == self._longest for length in lengths)
        self._prefixes = prefixes if prefixes and any(p is not None for p in prefixes) else None
        self._before = max((0 if p is None else p.keys.shape[1]) for p in (prefixes or [None]))
        self._device = device
        self._masks: dict[int | None, Tensor | None] = {}
        steps = torch.arange(self._longest)
        self._present = steps[None, :] < torch.tensor(self._lengths)[:, None]  # [B, T]
        # flat index of each packed row in the padded [B, T] layout
        self._scatter = self._present.reshape(-1).nonzero()[:, 0].to(device)

    def attend(self, layer, query, key, value, *, scaling, window, softcap):
        q, k, v = (self._padded(x) for x in (query, key, value))  # [B, heads, T, D]
        if self._prefixes is not None:
            k = torch.cat([self._prefix_rows(layer, "keys", k), k], dim=2)
            v = torch.cat([self._prefix_rows(layer, "values", v), v], dim=2)
        out = _attend_dense(q, k, v, self._mask(window), scaling, softcap)
        out = out.transpose(1, 2).reshape(-1, *query.shape[1:])  # [B * T, heads, D]
        return out if self._equal else out[self._scatter]

    def _padded(self, x: Tensor) -> Tensor:
        shape = (len(self._lengths), self._longest, *x.shape[1:])
        if not self._equal:
            flat = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
            x = flat.index_copy(0, self._scatter, x)
        return x.view(shape).transpose(1, 2)

    def _prefix_rows(self, layer: int, which: str, like: Tensor) -> Tensor:
        """[B, kv_heads, longest prefix, D], each prefix next to its text (right-aligned)."""
        rows = []
        for prefix in self._prefixes:
            if prefix is None:
                rows.append(like.new_zeros(like.shape[1], self._before, like.shape[3]))
                continue
            own = getattr(prefix, which)[layer].to(like.dtype).transpose(0, 1)  # [kv_heads, P, D]
            rows.append(F.pad(own, (0, 0, self._before - own.shape[1], 0)))
        return torch.stack(rows)

    def _mask(self, window: int | None) -> Tensor | None:
        """[B or 1, 1, T, before + T], True where a query may look; None where plain causality is enough."""
        if self._prefixes is None and (window is None or window >= self._longest):
            return None
        if window not in self._masks:
            here = torch.arange(self._longest)[:, None] + self._before
            there = torch.arange(self._before + self._longest)[None, :]
            allowed = there <= here
            if window is not None:
                allowed &= here - there < window
            allowed = allowed[None].repeat(len(self._lengths), 1, 1)
            for i, prefix in enumerate(self._prefixes or []):
                missing = self._before - (0 if prefix is None else prefix.keys.shape[1])
                allowed[i, :, :missing] = False
            self._masks[window] = allowed[:, None].to(self._device)
        return self._masks[window]


def _attend_dense(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, softcap: float | None
) -> Tensor:
    """q [B, heads, T, D], k and v [B, kv_heads, S, D]; mask None means causal over T = S."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = softcap * torch.tanh((q @ k.transpose(2, 3)) * scaling / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v


class _Recording(PackedAttention):
    """Attention over one sequence that keeps every layer's keys and values."""

    def __init__(self, length: int, device: torch.device):
        super().__init__([length], None, device)
        self.layers: list[tuple[Tensor, Tensor]] = []

    def attend(self, layer, query, key, value, *, scaling, window, softcap):
        self.layers.append((key, value))
        return super().attend(layer, query, key, value, scaling=scaling, window=window, softcap=softcap)


def cache_rows(base: Base, rows: Tensor, step: Step | None = None) -> CacheRows:
    """What a cache holds after `rows` [P, H] have run through `base` alone, from position 0."""
    recording = _Recording(rows.shape[0], rows.device)
    positions = torch.arange(rows.shape[0], device=rows.device)
    base.forward(rows.to(base.dtype), positions, recording, step, positions[-1:])
    keys, values = (torch.stack(layers) for layers in zip(*recording.layers, strict=True))
    return CacheRows(keys, values, text_start=rows.shape[0])
