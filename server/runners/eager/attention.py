"""Attention over the paged cache: the generic runner's context, on any device, for every family.

Planned once a step, then asked once a layer. Single rows (decode) go through one gather and two grouped products, or
what a device has in their place; longer runs (prefill) one after another. The slow, obvious counterpart of the kernels.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.server.cache.step import BLOCK_ROWS, Batch
from graft.server.cache.tensors import KVCache


class SingleRows(Protocol):
    """All runs of one row, where a step has any."""

    rows: Tensor  # [B]: which rows of the step they are

    def __init__(self, rows: Tensor, tables: Tensor, last: Tensor, device: torch.device):
        """rows [B]; tables [B, S]: the block tables, padded; last [B]: each row's own cache index. All on the CPU."""

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """query [B, heads, D], keys and values [cache rows, kv_heads, D] -> [B, heads, D]."""
        ...


class PagedAttention:
    """An AttentionContext for one step (hub/adapters/packed_attention.py). `singles` attends to the runs of one row."""

    def __init__(self, batch: Batch, cache: KVCache, singles: type[SingleRows] | None = None):
        self._cache = cache
        device = cache.keys.device
        runs = batch.runs
        lengths = torch.tensor([run.length for run in runs])
        starts = torch.tensor([run.start for run in runs])
        firsts = lengths.cumsum(0) - lengths  # packed row of each run's first row
        tables = _pad([run.blocks for run in runs])
        run_of = torch.repeat_interleave(torch.arange(len(runs)), lengths)
        index = starts[run_of] + torch.arange(len(run_of)) - firsts[run_of]  # cache index of each row
        self._slots = (tables[run_of, index // BLOCK_ROWS] * BLOCK_ROWS + index % BLOCK_ROWS).to(device)
        self._single = (singles or _Singles)(firsts[lengths == 1], tables[lengths == 1], starts[lengths == 1], device)
        self._longer = [
            _Longer(int(firsts[i]), int(lengths[i]), int(starts[i]), tables[i], device)
            for i in (lengths > 1).nonzero()[:, 0].tolist()
        ]

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
        keys, values = (x[layer].flatten(0, 1) for x in (self._cache.keys, self._cache.values))
        keys[self._slots] = key
        values[self._slots] = value
        if not self._longer:  # every row is a decode row: no need to put results in place
            return self._single.attend(query, keys, values, scaling, window, softcap)
        out = torch.empty_like(query)
        if len(self._single.rows):
            rows = self._single.rows
            out[rows] = self._single.attend(query[rows], keys, values, scaling, window, softcap)
        for run in self._longer:
            out[run.rows] = run.attend(query[run.rows], keys, values, scaling, window, softcap)
        return out


class _Singles:
    """Runs of one row: all of them at once, padded to the longest context."""

    def __init__(self, rows: Tensor, tables: Tensor, last: Tensor, device: torch.device):
        self.rows = rows.to(device)
        self._last = last.to(device)  # each row's own cache index
        steps = torch.arange(int(last.max()) + 1 if len(last) else 0)
        # Behind its context a row sees its own slot again: what lies there has no weight, but a NaN that another
        # sequence left in the rest of the block would stay one.
        index = torch.minimum(steps, last[:, None])
        slots = tables.gather(1, index // BLOCK_ROWS) * BLOCK_ROWS + index % BLOCK_ROWS
        self._slots, self._steps = slots.to(device), steps.to(device)
        self._absent: dict[int | None, Tensor] = {}

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        k, v = (x[self._slots].transpose(1, 2) for x in (keys, values))  # [B, kv_heads, S, D]
        grouped = query.view(len(query), k.shape[1], -1, query.shape[-1])  # query heads by the kv head they share
        scores = (grouped @ k.transpose(2, 3)).float() * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.masked_fill_(self._mask(window), float("-inf"))
        return (scores.softmax(-1).to(v.dtype) @ v).reshape(query.shape)

    def _mask(self, window: int | None) -> Tensor:
        """[B, 1, 1, S], True where there is nothing to see."""
        if window not in self._absent:
            distance = self._last[:, None] - self._steps
            absent = distance < 0
            if window is not None:
                absent |= distance >= window
            self._absent[window] = absent[:, None, None]
        return self._absent[window]


class _Longer:
    """One run of several rows: part of a prompt."""

    def __init__(self, first: int, length: int, start: int, table: Tensor, device: torch.device):
        self.rows = slice(first, first + length)
        self._here = torch.arange(start, start + length, device=device)
        steps = torch.arange(start + length)
        self._slots = (table[steps // BLOCK_ROWS] * BLOCK_ROWS + steps % BLOCK_ROWS).to(device)
        self._masks: dict[int | None, Tensor | None] = {}

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (query, keys[self._slots], values[self._slots]))
        if softcap is None:
            return attend_fused(q, k, v, self._mask(window), scaling, apart=q.is_cuda)[0].transpose(0, 1)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = softcap * torch.tanh((q @ k.transpose(2, 3)).float() * scaling / softcap)
        mask = self._mask(window)
        absent = ~mask if mask is not None else torch.ones_like(scores, dtype=torch.bool).triu(1)
        return (scores.masked_fill(absent, float("-inf")).softmax(-1).to(v.dtype) @ v)[0].transpose(0, 1)

    def _mask(self, window: int | None) -> Tensor | None:
        """[1, 1, T, S], True where a row may look; None where plain causality over T = S is enough."""
        if window not in self._masks:
            steps = torch.arange(len(self._slots), device=self._slots.device)
            distance = self._here[:, None] - steps
            allowed = distance >= 0
            if window is not None:
                allowed &= distance < window
            plain = len(steps) == len(self._here) and (window is None or window >= len(steps))
            self._masks[window] = None if plain else allowed[None, None]
        return self._masks[window]


def attend_fused(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float, *, apart: bool
) -> Tensor:
    """torch's attention: query [1, heads, T, D], keys and values [1, kv_heads, S, D] -> [1, heads, T, D]. `mask`: None for causality.

    `apart`: the device's fused kernels take heads that share keys, or a mask, but not both: without keys of its own for each head
    there, torch holds the scores of all heads [heads, T, S].
    """
    shared = query.shape[1] != keys.shape[1]
    if shared and apart and mask is not None:
        keys, values = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (keys, values))
        shared = False
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
    )


def _pad(tables: Sequence[Sequence[int]]) -> Tensor:
    longest = max(len(table) for table in tables)
    return torch.tensor([[*table, *[0] * (longest - len(table))] for table in tables])
