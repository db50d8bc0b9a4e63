"""Attention over packed rows without a cache: the trainer's context, and that of proofs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.hub.adapters.serving_forms import CacheRows

if TYPE_CHECKING:
    from graft.hub.adapters.batched_apply import Step
    from graft.hub.base.model import Base

# Up to this many keys a CPU is faster with plain products than with torch's fused kernel, forward and backward,
# measured on 2 cores: bf16 4.8 against 16.4 ms at 8 x 128, 18.7 against 29.1 at 2 x 512; above, fp32 turns.
_PLAIN_KEYS = 512


class PackedAttention:
    """Causal attention within each packed sequence; no cache. Differentiable: the trainer's context.

    `prefixes[i]` are key/value rows before sequence i in every layer (prefix tuning), or None. `leaders[i]` is
    another sequence of the pack that sequence i follows and looks back on (a soft prompt before many texts), or None.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        prefixes: Sequence[CacheRows | None] | None,
        device: torch.device,
        leaders: Sequence[int | None] | None = None,
    ):
        self._lengths = list(lengths)
        self._longest = max(lengths)
        self._equal = all(length == self._longest for length in lengths)
        self._prefixes = _Prefixes(prefixes, device) if prefixes and any(p is not None for p in prefixes) else None
        self._leaders = _Leaders(lengths, leaders, device) if leaders and any(i is not None for i in leaders) else None
        self._before = max((group.longest for group in (self._prefixes, self._leaders) if group), default=0)
        self._device = torch.device(device)
        self._masks: dict[int | None, Tensor] = {}
        self._biases: dict[int | None, Tensor] = {}
        steps = torch.arange(self._longest)
        self._present = steps[None, :] < torch.tensor(self._lengths)[:, None]  # [B, T]
        # flat index of each packed row in the padded [B, T] layout
        self._scatter = self._present.reshape(-1).nonzero()[:, 0].to(device)

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
        q, k, v = (self._pad(x) for x in (query, key, value))  # [B, heads, T, D]
        if self._before:
            k = torch.cat([self._rows_before("keys", layer, key), k], dim=2)
            v = torch.cat([self._rows_before("values", layer, value), v], dim=2)
        # torch's fused kernel knows no soft-cap, and on a CPU loses to plain products until memory decides
        if softcap is not None or (self._device.type == "cpu" and k.shape[2] <= _PLAIN_KEYS):
            out = _attend_plain(q, k, v, self._bias(window, q.dtype), scaling, softcap)
        else:
            out = _attend_fused(q, k, v, self._mask(window), scaling)
        out = out.transpose(1, 2).reshape(-1, *query.shape[1:])  # [B * T, heads, D]
        return out if self._equal else out[self._scatter]

    def _rows_before(self, which: str, layer: int, packed: Tensor) -> Tensor:
        """[B, kv_heads, before, D], each sequence's next to its text; packed [T, kv_heads, D] of this layer."""
        rows: Tensor | None = None
        if self._prefixes is not None:
            rows = self._prefixes.rows(which, layer, packed.dtype)
            rows = F.pad(rows, (0, 0, self._before - rows.shape[2], 0))
        if self._leaders is not None:
            led = self._leaders.rows(packed)
            led = F.pad(led, (0, 0, self._before - led.shape[2], 0))
            rows = led if rows is None else torch.where(self._leaders.led, led, rows)
        assert rows is not None  # asked only where something goes before
        return rows

    def _pad(self, x: Tensor) -> Tensor:
        shape = (len(self._lengths), self._longest, *x.shape[1:])
        if not self._equal:
            flat = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
            x = flat.index_copy(0, self._scatter, x)
        return x.view(shape).transpose(1, 2)

    def _mask(self, window: int | None) -> Tensor | None:
        """[B or 1, 1, T, before + T], True where a query may look; None where plain causality is enough."""
        if not self._before and (window is None or window >= self._longest):
            return None
        return self._causal_mask(window)

    def _causal_mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            here = torch.arange(self._longest)[:, None] + self._before
            there = torch.arange(self._before + self._longest)[None, :]
            allowed = there <= here
            if window is not None:
                allowed &= here - there < window
            allowed = allowed[None]
            if self._before:
                counts = torch.zeros(len(self._lengths), dtype=torch.long)
                for group in (self._prefixes, self._leaders):
                    counts += group.counts if group else 0
                filled = there[0] >= self._before - counts[:, None]  # [B, before + T]
                allowed = allowed & filled[:, None, :]
            self._masks[window] = allowed[:, None].to(self._device)
        return self._masks[window]

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """The mask as something to add to scores: 0 or -inf."""
        if window not in self._biases:
            allowed = self._causal_mask(window)
            self._biases[window] = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
                ~allowed, float("-inf")
            )
        return self._biases[window]


class _Prefixes:
    """The prefixes of a batch side by side, each next to its text (right-aligned); every one is laid out once."""

    def __init__(self, prefixes: Sequence[CacheRows | None], device: torch.device):
        distinct = {id(prefix): prefix for prefix in prefixes if prefix is not None}
        order = {key: i for i, key in enumerate(distinct, start=1)}
        counts = [0 if prefix is None else prefix.keys.shape[1] for prefix in prefixes]
        self.longest = max(counts)
        # row 0 is nothing, for sequences without a prefix: masked or not, they must not meet a neighbour's NaN
        self._index = torch.tensor([order.get(id(prefix), 0) for prefix in prefixes], device=device)
        self._rows = {
            "keys": self._stack_rows([prefix.keys for prefix in distinct.values()]),
            "values": self._stack_rows([prefix.values for prefix in distinct.values()]),
        }  # [1 + distinct, L, kv_heads, longest, D]
        self.counts = torch.tensor(counts)

    def rows(self, which: str, layer: int, dtype: torch.dtype) -> Tensor:
        """[B, kv_heads, longest, D]"""
        return self._rows[which][:, layer].to(dtype).index_select(0, self._index)

    def _stack_rows(self, prefixes: list[Tensor]) -> Tensor:
        aligned = [F.pad(rows.transpose(1, 2), (0, 0, self.longest - rows.shape[1], 0)) for rows in prefixes]
        return torch.stack([torch.zeros_like(aligned[0]), *aligned])


class _Leaders:
    """Sequences of the pack that others follow: their rows of this very pass, next to each follower's text."""

    def __init__(self, lengths: Sequence[int], leaders: Sequence[int | None], device: torch.device):
        starts = [0, *itertools.accumulate(lengths)]
        counts = [0 if leader is None else lengths[leader] for leader in leaders]
        self.longest, self.counts = max(counts), torch.tensor(counts)
        self.led = torch.tensor([leader is not None for leader in leaders], device=device)[:, None, None, None]
        index = []
        for i, leader in enumerate(leaders):
            own = [] if leader is None else list(range(starts[leader], starts[leader + 1]))
            # the columns that are masked take a row of the sequence's own: never a neighbour's NaN
            filler = starts[i] if leader is None else starts[leader]
            index += [filler] * (self.longest - len(own)) + own
        self._index = torch.tensor(index, device=device)

    def rows(self, packed: Tensor) -> Tensor:
        """packed [T, kv_heads, D] -> [B, kv_heads, longest, D]"""
        rows = packed.index_select(0, self._index)
        return rows.view(-1, self.longest, *packed.shape[1:]).transpose(1, 2)


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """q [B, heads, T, D], k and v [B, kv_heads, S, D]; mask None means causal over T = S."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)


def _attend_plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """The same with every score in memory; heads that share keys are one product. bias [B or 1, 1, T, S]."""
    B, heads, T, D = q.shape
    kv_heads, S = k.shape[1:3]
    grouped = (q * scaling).reshape(B, kv_heads, heads // kv_heads * T, D)
    scores = (grouped @ k.transpose(2, 3)).view(B, heads, T, S)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores + bias).softmax(dim=-1)
    return (weights.view(B, kv_heads, -1, S) @ v).view(B, heads, T, D)


class RecordingAttention(PackedAttention):
    """Packed attention that keeps every layer's new keys and values."""

    def __init__(self, lengths: Sequence[int], prefixes: Sequence[CacheRows | None] | None, device: torch.device):
        super().__init__(lengths, prefixes, device)
        self._layers: list[tuple[Tensor, Tensor]] = []

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
        self._layers.append((key, value))
        return super().attend(layer, query, key, value, scaling=scaling, window=window, softcap=softcap)

    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """(keys, values) of all rows of the pass, each [L, T, kv_heads, D]."""
        keys, values = (torch.stack(layers) for layers in zip(*self._layers, strict=True))
        return keys, values


def cache_rows(base: Base, rows: Tensor, step: Step | None = None) -> CacheRows:
    """What a cache holds after `rows` [P, H] have run through `base` alone, from position 0."""
    recording = RecordingAttention([rows.shape[0]], None, rows.device)
    positions = torch.arange(rows.shape[0], device=rows.device)
    base.forward(rows.to(base.dtype), positions, recording, step, positions[-1:])
    return CacheRows(*recording.keys_and_values(), text_start=rows.shape[0])
