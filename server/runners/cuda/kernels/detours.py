"""Triton kernels for detours on a GPU: many adapters in one launch, whatever their ranks, read where they lie.

Rows come sorted by adapter and are cut into tiles that never mix adapters. A tile names its adapter's slot, and a
table [slots, places, FIELDS] of int64 says what the adapter has at each place: the addresses of its matrices, its
ranks, its activation. So no matrix moves when the adapters of a step change, and a step brings nothing but its tiles.
A place where a slot has nothing is all zeros, as all of slot 0 is: its rows are copied, bit for bit.

`shrink` multiplies with A for all places that read the same rows, COLUMNS ranks a program; `expand_add` adds one
place's products with B; `scale_shift` is a place's elementwise scale and bias. What is padded is registers, never memory.

Knows rows, slots and addresses; no adapters, no taps. Runs on a CPU through Triton's interpreter
(TRITON_INTERPRET=1, read when this file is imported), which is for tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 16  # ranks that a program of `shrink` multiplies: the least that a tensor core does
MANY_ROWS, FEW_ROWS = 64, 16  # rows of a tile
ALIGNMENT = 16  # bytes: what an address in the table is a multiple of
# What a place's record holds. Of a low-rank detour A, a, B, b (a bias's address is 0 where there is none), the number
# of ranks and the activation's; of a vector the first two, scale and bias, either may be 0.
FIELDS = 6
_INPUTS = 128  # inputs that `shrink` multiplies at a time
_OUTPUTS = 128  # outputs that a program of `expand_add` or `scale_shift` writes
_SHARE = 512  # tiles of few rows make few programs: the inputs of each are shared out to several

_COUNTED = ("place", "column")  # differ from launch to launch: no variant of a kernel is compiled for a lucky number
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_FIELDS = tl.constexpr(FIELDS)
_ALIGNMENT = tl.constexpr(ALIGNMENT)

# A kernel knows an activation by its place here.
ACTIVATIONS = ("none", "relu", "silu", "swish", "gelu", "gelu_new", "tanh", "sigmoid", "leakyrelu")


@dataclass(frozen=True)
class Tiles:
    """Whose rows are whose. table [J, 3] int64 on the device: first row, rows (at most `rows`; 0: no tile), slot."""

    table: Tensor
    rows: int


def cut(segments: Sequence[tuple[int, int]], tile_rows: int) -> list[tuple[int, int, int]]:
    """Consecutive segments (rows, slot) as tiles (first row, rows, slot)."""
    tiles = []
    first = 0
    for slot, neighbours in groupby(segments, lambda segment: segment[1]):
        stop = first + sum(rows for rows, _ in neighbours)
        tiles += [(row, min(tile_rows, stop - row), slot) for row in range(first, stop, tile_rows)]
        first = stop
    return tiles


def make_tiles(segments: Sequence[tuple[int, int]], device: torch.device) -> Tiles:
    """The tiles of consecutive segments (rows, slot); small ones where no slot but 0 has many rows."""
    longest = max((rows for rows, slot in segments if slot), default=0)
    tile_rows = FEW_ROWS if longest <= FEW_ROWS else MANY_ROWS
    table = torch.tensor(cut(segments, tile_rows), dtype=torch.int64).view(-1, 3)
    return Tiles(table.to(device), tile_rows)


def low_rank_sums(x: Tensor, table: Tensor, tiles: Tiles, columns: Tensor) -> Tensor:
    """x A^T for every column of every tile, float32 [J, columns, shares, tile rows, COLUMNS], not yet added up over shares.

    x [T, in]; columns [G, 2] int64: a place and the first of its ranks. What a tile's slot has no ranks for is not written.
    """
    x = _make_dense(x)
    inputs = x.shape[1]
    share = _SHARE if tiles.rows == FEW_ROWS else inputs
    shares = triton.cdiv(inputs, share)
    shape = (len(tiles.table), len(columns), shares, tiles.rows, COLUMNS)
    sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        shrink[shape[:3]](
            x, table, tiles.table, columns, sums, table.shape[1], inputs, x.stride(0), share,
            ROWS=tiles.rows, COLUMNS=COLUMNS, STEP=_INPUTS,
        )  # fmt: skip
    return sums


def add_low_rank(rows: Tensor, sums: Tensor, table: Tensor, tiles: Tiles, place: int, column: int) -> Tensor:
    """rows [T, out] plus act(sums + a) B + b of each tile's slot at `place`, whose ranks begin at `column` of the sums.

    A new tensor; what is added is added up in float32. Matrices and biases are of the rows' dtype.
    """
    rows = _make_dense(rows)
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    outputs = rows.shape[1]
    with torch.cuda.device_of(rows):
        expand_add[len(tiles.table), triton.cdiv(outputs, _OUTPUTS)](
            rows, sums, table, tiles.table, out, place, table.shape[1], column, sums.shape[1], sums.shape[2],
            outputs, rows.stride(0), ROWS=tiles.rows, COLUMNS=COLUMNS, WIDTH=_OUTPUTS,
        )  # fmt: skip
    return out


def add_vector(rows: Tensor, table: Tensor, tiles: Tiles, place: int) -> Tensor:
    """rows [T, d] times the scale plus the bias of each tile's slot at `place`. A new tensor, rounded twice as torch does."""
    rows = _make_dense(rows)
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    width = rows.shape[1]
    with torch.cuda.device_of(rows):
        scale_shift[len(tiles.table), triton.cdiv(width, _OUTPUTS)](
            rows, table, tiles.table, out, place, table.shape[1], width, rows.stride(0),
            ROWS=tiles.rows, WIDTH=_OUTPUTS,
        )  # fmt: skip
    return out


@triton.jit
def shrink(
    x: tl.tensor, table: tl.tensor, tiles: tl.tensor, columns: tl.tensor, sums: tl.tensor,
    places: tl.tensor, inputs: tl.tensor, x_stride: tl.tensor, share: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
) -> None:  # fmt: skip
    """x A^T of one tile and COLUMNS ranks of one place over one share of the inputs. Grid: (tiles, columns, shares)."""
    tile, column, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place, first = tl.load(columns + column * 2), tl.load(columns + column * 2 + 1)
    row, rows = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1)
    record = _record(table, tiles, tile, place, places)
    ranks = tl.load(record + 4)
    if first < ranks:
        r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
        x_rows = x + (row + r)[:, None] * x_stride
        A_rows = _pointer(tl.load(record), x) + (first + c)[None, :] * inputs
        h = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        stop = tl.minimum((part + 1) * share, inputs)
        for step in range(part * share, stop, STEP):
            k = step + tl.arange(0, STEP)
            x_tile = tl.load(x_rows + k[None, :], mask=(r < rows)[:, None] & (k < stop)[None, :], other=0.0)
            A_tile = tl.load(A_rows + k[:, None], mask=(first + c < ranks)[None, :] & (k < stop)[:, None], other=0.0)
            h = multiply_add(x_tile, A_tile, h)
        here = ((tile.to(tl.int64) * tl.num_programs(1) + column) * tl.num_programs(2) + part) * ROWS * COLUMNS
        tl.store(sums + here + r[:, None] * COLUMNS + c[None, :], h)


@triton.jit(do_not_specialize=_COUNTED)
def expand_add(
    rows_in: tl.tensor, sums: tl.tensor, table: tl.tensor, tiles: tl.tensor, out: tl.tensor,
    place: tl.tensor, places: tl.tensor, column: tl.tensor, width: tl.tensor, shares: tl.tensor,
    outputs: tl.tensor, in_stride: tl.tensor,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of the result, WIDTH outputs of it: its rows plus act(sums + a) B + b.

    The sums of a tile are `width` columns, its own from `column` on. Grid: (tiles, widths)."""
    tile = tl.program_id(0)
    row, rows = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1)
    record = _record(table, tiles, tile, place, places)
    ranks = tl.load(record + 4).to(tl.int32)
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = (r < rows)[:, None] & (n < outputs)[None, :]
    row_of = (row + r)[:, None]
    value = tl.load(rows_in + row_of * in_stride + n[None, :], mask=here)
    if ranks > 0:  # else not even zero is added: the bare base's rows keep their bits
        a, b = tl.load(record + 1), tl.load(record + 3)
        B = _pointer(tl.load(record + 2), rows_in)
        delta = tl.zeros((ROWS, WIDTH), dtype=tl.float32)
        if b != 0:
            delta += tl.load(_pointer(b, rows_in) + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
        for first in range(0, ranks, COLUMNS):
            h = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
            group = (tile.to(tl.int64) * width + column + first // COLUMNS) * shares
            for part in range(shares):
                h += tl.load(sums + (group + part) * ROWS * COLUMNS + r[:, None] * COLUMNS + c[None, :])
            ours = first + c < ranks
            if a != 0:
                h += tl.load(_pointer(a, rows_in) + first + c, mask=ours, other=0.0).to(tl.float32)[None, :]
            h = _activate(h, tl.load(record + 5))
            B_rows = B + (first + c).to(tl.int64)[:, None] * outputs
            B_tile = tl.load(B_rows + n[None, :], mask=ours[:, None] & (n < outputs)[None, :], other=0.0)
            delta = multiply_add(h.to(B_tile.dtype), B_tile, delta)
        value = (value.to(tl.float32) + delta).to(value.dtype)
    tl.store(out + row_of * outputs + n[None, :], value, mask=here)


@triton.jit(do_not_specialize=_COUNTED)
def scale_shift(
    rows_in: tl.tensor, table: tl.tensor, tiles: tl.tensor, out: tl.tensor,
    place: tl.tensor, places: tl.tensor, width: tl.tensor, in_stride: tl.tensor,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of the result, WIDTH of its numbers: its rows times scale plus bias. Grid: (tiles, widths)."""
    tile = tl.program_id(0)
    row, rows = tl.load(tiles + tile * 3), tl.load(tiles + tile * 3 + 1)
    record = _record(table, tiles, tile, place, places)
    scale, bias = tl.load(record), tl.load(record + 1)
    r, n = tl.arange(0, ROWS), tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    here = (r < rows)[:, None] & (n < width)[None, :]
    row_of = (row + r)[:, None]
    value = tl.load(rows_in + row_of * in_stride + n[None, :], mask=here)
    if scale != 0:
        factors = tl.load(_pointer(scale, rows_in) + n, mask=n < width, other=0.0)
        value = (value.to(tl.float32) * factors.to(tl.float32)[None, :]).to(value.dtype)
    if bias != 0:
        added = tl.load(_pointer(bias, rows_in) + n, mask=n < width, other=0.0)
        value = (value.to(tl.float32) + added.to(tl.float32)[None, :]).to(value.dtype)
    tl.store(out + row_of * width + n[None, :], value, mask=here)


@triton.jit
def multiply_add(left: tl.tensor, right: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """sums + left right. Triton's interpreter would multiply the bits of bfloat16; widened, the products are the same."""
    if _INTERPRETED:
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, sums, input_precision="ieee")


@triton.jit
def _record(table: tl.tensor, tiles: tl.tensor, tile: tl.tensor, place: tl.tensor, places: tl.tensor) -> tl.tensor:
    """Where the table says what the tile's slot has at `place`."""
    return table + (tl.load(tiles + tile * 3 + 2) * places + place) * _FIELDS


@triton.jit
def _pointer(address: tl.tensor, like: tl.tensor) -> tl.tensor:
    """An address from the table as a pointer to what `like` points to."""
    return tl.multiple_of(address.to(like.dtype), _ALIGNMENT)


@triton.jit
def _activate(h: tl.tensor, number: tl.tensor) -> tl.tensor:
    """The activation with that number in ACTIVATIONS; tanh by way of the sigmoid, which every backend has."""
    if number == 1:  # relu; tl.maximum makes a number of NaN
        h = tl.where(h < 0.0, 0.0, h)
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


def _make_dense(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()
