"""Triton kernels for attention of single rows over the paged cache, straight from the block table.

`attend_part` computes all query heads that share a kv head over one part of a row's context, `join_parts` puts the
parts together. How long the contexts are is read on the device: a launch depends only on how many rows there are,
so that it can be recorded. Knows no adapters and no steps. Runs in Triton's interpreter, as detours.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from graft.server.cache.step import BLOCK_ROWS
from graft.server.runners.cuda.kernels.detours import multiply_add

_KEYS = 64  # keys that a program looks at at a time, fewer where they are wide: they lie in shared memory
_KEY_BYTES = 512
_PROGRAMS = 256  # with fewer rows a context is shared out to several programs, which keep the device busy
_MOST_PARTS = 16
_EVERYTHING = 1 << 30  # a window that leaves nothing


def attend_rows(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tables: Tensor,
    firsts: Tensor,
    lengths: Tensor,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """softmax(q k^T) v of single rows, each over the first `lengths` rows of its sequence. Scores are float32.

    Shapes: query [N, heads, D], keys and values [cache rows, kv_heads, D] -> [N, heads, D]. Row i's blocks are tables [S]
    from firsts[i] on; firsts and lengths [N], int64. A window w leaves the last w rows.
    """
    rows, heads, size = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    query = query if query.stride(2) == 1 else query.contiguous()
    width = max(16, triton.next_power_of_2(size))
    step = keys_at_a_time(width, query.dtype.itemsize)
    window = _EVERYTHING if window is None else window
    longest = min(window, len(tables) // rows * BLOCK_ROWS)
    parts = max(1, min(_MOST_PARTS, _PROGRAMS // (rows * kv_heads), triton.cdiv(longest, step)))
    sums = torch.empty(rows, heads, parts, size, dtype=torch.float32, device=query.device)
    peaks, norms = torch.empty(2, rows, heads, parts, dtype=torch.float32, device=query.device)
    out = torch.empty(rows, heads, size, dtype=query.dtype, device=query.device)
    with torch.cuda.device_of(query):
        attend_part[rows, kv_heads, parts](
            query, keys, values, tables, firsts, lengths, sums, peaks, norms, query.stride(0), query.stride(1),
            group, size, window, scaling, softcap or 0.0,
            CAPPED=softcap is not None, HEADS=max(16, triton.next_power_of_2(group)), WIDTH=width, KEYS=step,
            BLOCK_ROWS=BLOCK_ROWS,
        )  # fmt: skip
        join_parts[rows, heads](sums, peaks, norms, out, parts, size, PARTS=triton.next_power_of_2(parts), WIDTH=width)
    return out


def keys_at_a_time(width: int, itemsize: int) -> int:
    """How many keys of `width` numbers a program looks at at a time."""
    return min(_KEYS, _KEYS * _KEY_BYTES // (width * itemsize))


@triton.jit
def attend_part(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, tables: tl.tensor, firsts: tl.tensor, lengths: tl.tensor,
    sums: tl.tensor, peaks: tl.tensor, norms: tl.tensor, row_stride: tl.tensor, head_stride: tl.tensor,
    group: tl.tensor, size: tl.tensor, window: tl.tensor, scaling: tl.tensor, softcap: tl.tensor,
    CAPPED: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """`group` heads of one row over one part of its context: unnormalised sums [N, heads, parts, D], peaks and norms
    [N, heads, parts]. A part without keys has the peak -inf. Grid: (rows, kv_heads, parts)."""
    row, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    kv_heads, parts = tl.num_programs(1), tl.num_programs(2)
    table = tables + tl.load(firsts + row)
    length = tl.load(lengths + row).to(tl.int32)
    begin = tl.maximum(length - window, 0)
    span = tl.cdiv(tl.cdiv(length - begin, parts), KEYS) * KEYS
    first = begin + part * span
    last = tl.minimum(first + span, length)
    g, d, k = tl.arange(0, HEADS), tl.arange(0, WIDTH), tl.arange(0, KEYS)
    head = kv_head * group + g
    real = (g < group)[:, None] & (d < size)[None, :]
    q = tl.load(query + row * row_stride + head[:, None] * head_stride + d[None, :], mask=real, other=0.0)
    peak = tl.full((HEADS,), float("-inf"), tl.float32)
    norm = tl.zeros((HEADS,), dtype=tl.float32)
    total = tl.zeros((HEADS, WIDTH), dtype=tl.float32)
    for start in range(first, last, KEYS):
        index = start + k
        there = index < last
        slot = tl.load(table + index // BLOCK_ROWS, mask=there, other=0) * BLOCK_ROWS + index % BLOCK_ROWS
        place = (slot * kv_heads + kv_head) * size
        key = tl.load(keys + place[None, :] + d[:, None], mask=there[None, :] & (d < size)[:, None], other=0.0)
        scores = multiply_add(q, key, tl.zeros((HEADS, KEYS), dtype=tl.float32)) * scaling
        if CAPPED:  # tanh(z) is 2 sigmoid(2 z) - 1
            scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(peak - higher)
        norm = norm * fade + tl.sum(weights, 1)
        value = tl.load(values + place[:, None] + d[None, :], mask=there[:, None] & (d < size)[None, :], other=0.0)
        total = multiply_add(weights.to(value.dtype), value, total * fade[:, None])
        peak = higher
    here = (row * kv_heads * group + head) * parts + part
    tl.store(sums + here[:, None] * size + d[None, :], total, mask=real)
    tl.store(peaks + here, peak, mask=g < group)
    tl.store(norms + here, norm, mask=g < group)


@triton.jit
def join_parts(
    sums: tl.tensor, peaks: tl.tensor, norms: tl.tensor, out: tl.tensor, parts: tl.tensor, size: tl.tensor,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """One head of one row from its parts. Grid: (rows, heads)."""
    head = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    p, d = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    here = head * parts + p
    peak = tl.load(peaks + here, mask=p < parts, other=float("-inf"))
    weight = tl.exp(peak - tl.max(peak, 0))
    norm = tl.sum(tl.load(norms + here, mask=p < parts, other=0.0) * weight, 0)
    mask = (p < parts)[:, None] & (d < size)[None, :]
    total = tl.load(sums + here[:, None] * size + d[None, :], mask=mask, other=0.0)
    result = tl.sum(total * weight[:, None], 0) / norm
    tl.store(out + head * size + d, result.to(out.dtype.element_ty), mask=d < size)
