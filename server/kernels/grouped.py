"""Triton kernels for low-rank detours on a GPU: many adapters' products in two launches, whatever their ranks.

Rows come sorted by adapter and are cut into tiles that never mix adapters; every tile has as many items as its
adapter has groups of COLUMNS ranks. `shrink` computes one item a program, `expand_add` one tile of the result.
Matrices are read where they lie, [R, in] and [R, out], all ranks of all adapters one after another: what is
padded is an item's registers, never memory. A tile without items is copied, bit for bit.

Knows rows, ranks and tables; no adapters, no taps. Runs on a CPU through Triton's interpreter
(TRITON_INTERPRET=1, read when this file is imported), which is for tests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 16  # ranks of an item: the least that a tensor core multiplies
_INPUTS = 128  # inputs that `shrink` multiplies at a time
_OUTPUTS = 128  # outputs that a program of `expand_add` writes
_MANY_ROWS, _FEW_ROWS = 64, 16  # rows of a tile
_SHARE = 512  # with few rows there are few items: the inputs of one are shared out to several programs

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# A kernel knows an activation by its place here.
ACTIVATIONS = ("none", "relu", "silu", "swish", "gelu", "gelu_new", "tanh", "sigmoid", "leakyrelu")


@dataclass(frozen=True)
class Segment:
    """Consecutive rows and the ranks they pass: (first, how many, activation) each, at most COLUMNS of them."""

    rows: int
    ranks: Sequence[tuple[int, int, str]]


@dataclass(frozen=True)
class Work:
    """The tables of one step on its device, int32. They serve every channel with the same ranks.

    items [I, 5]: first row of x, rows, first rank, ranks, activation's number. tiles [J, 4]: first row, rows, first
    item, one past the last. `tile_rows`: rows of a tile, the last of a segment may have fewer.
    """

    items: Tensor
    tiles: Tensor
    tile_rows: int


def make_work(segments: Sequence[Segment], start: int, device: torch.device) -> Work:
    """Cut a step's segments, packed one after another, into tiles. `start`: the row at which x begins."""
    longest = max((segment.rows for segment in segments if segment.ranks), default=0)
    tile_rows = _FEW_ROWS if longest <= _FEW_ROWS else _MANY_ROWS
    items: list[tuple[int, ...]] = []
    tiles: list[tuple[int, ...]] = []
    first = 0
    for segment in _joined(segments):
        for row in range(first, first + segment.rows, tile_rows):
            rows = min(tile_rows, first + segment.rows - row)
            tiles.append((row, rows, len(items), len(items) + len(segment.ranks)))
            items += [(row - start, rows, rank, ranks, ACTIVATIONS.index(name)) for rank, ranks, name in segment.ranks]
        first += segment.rows
    return Work(_table(items, 5, device), _table(tiles, 4, device), tile_rows)


def add_low_rank(rows: Tensor, x: Tensor, A: Tensor, a: Tensor | None, B: Tensor, work: Work) -> Tensor:
    """rows [T, out] with act(x A^T + a) B added to the tiles that have items. A new tensor; sums are float32.

    Shapes: x [T', in], A [R, in], a [R], B [R, out]; all of one dtype on one device.
    """
    rows, x = _dense(rows), _dense(x)
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    inputs, outputs, items = A.shape[1], B.shape[1], len(work.items)
    share = _SHARE if work.tile_rows == _FEW_ROWS else inputs
    shares = triton.cdiv(inputs, share)
    sums = torch.empty(items, shares, work.tile_rows, COLUMNS, dtype=torch.float32, device=rows.device)
    with torch.cuda.device_of(rows):
        if items:
            shrink[items, shares](
                x, A, work.items, sums, inputs, x.stride(0), share,
                ROWS=work.tile_rows, COLUMNS=COLUMNS, STEP=_INPUTS,
            )  # fmt: skip
        expand_add[len(work.tiles), triton.cdiv(outputs, _OUTPUTS)](
            rows, sums, A if a is None else a, B, work.items, work.tiles, out, outputs, rows.stride(0), shares,
            BIASED=a is not None, ROWS=work.tile_rows, COLUMNS=COLUMNS, WIDTH=_OUTPUTS,
        )  # fmt: skip
    return out


@triton.jit
def shrink(
    x, A, items, sums, inputs, x_stride, share,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """x A^T of one item over one share of the inputs, into sums [items, shares, ROWS, COLUMNS]. Grid: (items, shares)."""
    item, part = tl.program_id(0), tl.program_id(1)
    row, rows = tl.load(items + item * 5), tl.load(items + item * 5 + 1)
    rank, ranks = tl.load(items + item * 5 + 2), tl.load(items + item * 5 + 3)
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    x_rows = x + (row + r).to(tl.int64)[:, None] * x_stride
    A_rows = A + (rank + c).to(tl.int64)[None, :] * inputs
    h = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    stop = tl.minimum((part + 1) * share, inputs)
    for step in range(part * share, stop, STEP):
        k = step + tl.arange(0, STEP)
        x_tile = tl.load(x_rows + k[None, :], mask=(r < rows)[:, None] & (k < stop)[None, :], other=0.0)
        A_tile = tl.load(A_rows + k[:, None], mask=(c < ranks)[None, :] & (k < stop)[:, None], other=0.0)
        h = _multiplied(x_tile, A_tile, h)
    place = (item * tl.num_programs(1) + part).to(tl.int64) * ROWS * COLUMNS
    tl.store(sums + place + r[:, None] * COLUMNS + c[None, :], h)


@triton.jit
def expand_add(
    rows_in, sums, a, B, items, tiles, out, outputs, in_stride, shares,
    BIASED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One tile of the result, WIDTH outputs of it: its rows plus act(sums + a) B of its items. Grid: (tiles, widths)."""
    tile = tl.program_id(0)
    row, rows = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    first, last = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = (r < rows)[:, None] & (n < outputs)[None, :]
    row_of = (row + r).to(tl.int64)[:, None]
    value = tl.load(rows_in + row_of * in_stride + n[None, :], mask=here)
    if last > first:  # else not even zero is added: the bare base's rows keep their bits
        delta = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        for item in range(first, last):
            rank, ranks = tl.load(items + item * 5 + 2), tl.load(items + item * 5 + 3)
            h = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
            for part in range(shares):
                place = (item * shares + part).to(tl.int64) * ROWS * COLUMNS
                h += tl.load(sums + place + r[:, None] * COLUMNS + c[None, :])
            if BIASED:
                h += tl.load(a + rank + c, mask=c < ranks, other=0.0).to(tl.float32)[None, :]
            h = _activated(h, tl.load(items + item * 5 + 4))
            B_rows = B + (rank + c).to(tl.int64)[:, None] * outputs
            B_tile = tl.load(B_rows + n[None, :], mask=(c < ranks)[:, None] & (n < outputs)[None, :], other=0.0)
            delta = _multiplied(h.to(B_tile.dtype), B_tile, delta)
        value = (value.to(tl.float32) + delta).to(value.dtype)
    tl.store(out + row_of * outputs + n[None, :], value, mask=here)


@triton.jit
def _multiplied(left, right, sums):
    """sums + left right. Triton's interpreter would multiply the bits of bfloat16; widened, the products are the same."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def _activated(h, number):
    """The activation with that number in ACTIVATIONS; tanh by way of the sigmoid, which every backend has."""
    if number == 1:  # relu
        h = tl.maximum(h, 0.0)
    elif number == 2 or number == 3:  # silu, swish
        h = h * tl.sigmoid(h)
    elif number == 4:  # gelu
        h = 0.5 * h * (1.0 + tl.erf(h * 0.7071067811865476))
    elif number == 5:  # gelu_new: 0.5 (1 + tanh(z)) is sigmoid(2 z)
        h = h * tl.sigmoid(1.5957691216057308 * (h + 0.044715 * h * h * h))
    elif number == 6:  # tanh
        h = 2.0 * tl.sigmoid(2.0 * h) - 1.0
    elif number == 7:  # sigmoid
        h = tl.sigmoid(h)
    elif number == 8:  # leakyrelu
        h = tl.where(h > 0.0, h, 0.01 * h)
    return h


def _joined(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Neighbours without ranks become one segment: they are only copied."""
    for touched, neighbours in groupby(segments, lambda segment: bool(segment.ranks)):
        if touched:
            yield from neighbours
        else:
            yield Segment(sum(segment.rows for segment in neighbours), ())


def _table(rows: list[tuple[int, ...]], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).view(-1, width).to(device)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
