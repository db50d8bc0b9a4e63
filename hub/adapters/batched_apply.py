"""The one definition of what an adapter does to the rows of a step, used by the trainer and the server.

A step is a batch of rows packed one after another, sorted by adapter: first the rows of the bare base, then
the rows of adapter 0, of adapter 1, ... `Stack` lays the forms of the step's adapters side by side (the
server keeps it while the same adapters are active; the trainer builds it with autograd every step);
`Step` adds which rows are whose and is asked at every tap.

Knows nothing of modules and hooks (hooks.py), caches (packed_attention.py) or methods.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from graft.hub.adapters.serving_forms import Form, LowRank, Vector
from graft.hub.base.hook_points import Tap

Layout = tuple[tuple[int, int, int, str], ...]  # (owner, first column, one past the last, activation)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leakyrelu": F.leaky_relu,
}


@dataclass(frozen=True)
class RowOwners:
    """Whose rows are whose: `bare` rows of the base, then `lengths[i]` rows of adapter i."""

    bare: int
    lengths: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.bare + sum(self.lengths)

    def span(self, owner: int) -> tuple[int, int]:
        start = self.bare + sum(self.lengths[:owner])
        return start, start + self.lengths[owner]

    @cached_property
    def owners(self) -> Tensor:
        """[T - bare]: the adapter of every row that has one."""
        lengths = torch.tensor(self.lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


class Channel:
    """All LowRanks that read the same taps and add to the same tap, their ranks side by side.

    Semantics, for the rows x [T, in] of adapter i:  h = act_i(x A_i^T + a_i);  delta = h B_i + b_i.
    An up-bias b is one more rank whose A is zero and a is one. Columns are grouped by activation; a row
    keeps only its own adapter's columns, so no weight is gathered by row and ranks need not agree.

    Every row is multiplied with every column, and all of it is differentiable. Channels of one `layout` share a `plan`.
    """

    def __init__(self, owned: Sequence[tuple[int, LowRank]], dtype: torch.dtype, device: torch.device):
        self.reads = owned[0][1].reads
        self.owners = tuple(owner for owner, _ in owned)
        self.dropouts = {owner: form.dropout for owner, form in owned if form.dropout > 0}
        blocks = [block for owner, form in owned for block in _blocks(owner, form)]
        blocks.sort(key=lambda block: block.activation)  # stable: by adapter within one activation
        self.A = torch.cat([block.A for block in blocks]).to(device, dtype)
        self.B = torch.cat([block.B for block in blocks]).to(device, dtype)
        biased = any(block.a is not None for block in blocks)
        self.a = torch.cat([_bias(block) for block in blocks]).to(device, dtype) if biased else None
        spans: list[tuple[int, int, int, str]] = []
        self.groups: list[tuple[str, int, int]] = []  # (activation, first column, one past the last)
        column = 0
        for block in blocks:
            stop = column + block.A.shape[0]
            spans.append((block.owner, column, stop, block.activation))
            if self.groups and self.groups[-1][0] == block.activation:
                self.groups[-1] = (block.activation, self.groups[-1][1], stop)
            else:
                self.groups.append((block.activation, column, stop))
            column = stop
        self.layout: Layout = tuple(spans)
        self._column_owner = torch.tensor(
            [owner for owner, start, stop, _ in spans for _ in range(stop - start)], device=device
        )

    @property
    def bytes(self) -> int:
        return _bytes(self.A, self.B, self.a, self._column_owner)

    def reach(self, whose: RowOwners) -> tuple[int, int]:
        """The stretch of a step's rows that holds all rows of this channel's adapters."""
        return whose.span(self.owners[0]) if len(self.owners) == 1 else (whose.bare, whose.total)

    def plan(self, whose: RowOwners) -> Tensor | None:
        """Which columns a step's rows keep, [T', R], None for all."""
        if len(self.owners) == 1:
            return None
        return whose.owners.to(self.A.device)[:, None] == self._column_owner[None, :]

    def add(self, rows: Tensor, x: Tensor, start: int, keep: Tensor | None) -> Tensor:
        """rows [T, out] plus the deltas of x [T', in], which are those of the rows from `start` on. A new tensor."""
        return _replace(rows, start, _stretch(rows, start, start + len(x)) + self.delta(x, keep))

    def delta(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x [T, in], keep [T, R] (None: one adapter owns every row) -> delta [T, out]."""
        h = F.linear(x, self.A, self.a)
        if self.groups != [("none", 0, h.shape[1])]:
            h = torch.cat([ACTIVATIONS[name](h[:, start:stop]) for name, start, stop in self.groups], dim=1)
        if keep is not None:
            # where, not multiplication: a neighbour's overflow must not turn into this row's NaN
            h = torch.where(keep, h, 0)
        return h @ self.B


@dataclass(frozen=True)
class _Block:
    owner: int
    activation: str
    A: Tensor
    B: Tensor
    a: Tensor | None


def _blocks(owner: int, form: LowRank) -> list[_Block]:
    if form.activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {form.activation!r}; known: {', '.join(ACTIVATIONS)}")
    blocks = [_Block(owner, form.activation, form.A, form.B * form.scale, form.a)]
    if form.b is not None:
        zero = torch.zeros_like(form.A[:1])
        blocks.append(_Block(owner, "none", zero, (form.b * form.scale)[None], torch.ones_like(zero[:, 0])))
    return blocks


def _bias(block: _Block) -> Tensor:
    return torch.zeros_like(block.A[:, 0]) if block.a is None else block.a


class Vectors:
    """All Vectors of one tap; row 0 of `scale` and `bias` is the identity, for adapters without one here."""

    def __init__(self, owned: Sequence[tuple[int, Vector]], dtype: torch.dtype, device: torch.device):
        self.owners = tuple(owner for owner, _ in owned)
        scales = [form.scale for _, form in owned]
        biases = [form.bias for _, form in owned]
        self.scale = _stack_vectors(scales, torch.ones_like, dtype, device)
        self.bias = _stack_vectors(biases, torch.zeros_like, dtype, device)

    @property
    def bytes(self) -> int:
        return _bytes(self.scale, self.bias)

    def apply(self, value: Tensor, index: Tensor | int) -> Tensor:
        """value [T, d], index [T] into the stacked rows (or one index for all of them) -> [T, d]."""
        if self.scale is not None:
            value = value * self.scale[index]
        if self.bias is not None:
            value = value + self.bias[index]
        return value


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _stack_vectors(
    vectors: list[Tensor | None], identity: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    given = [vector for vector in vectors if vector is not None]
    if not given:
        return None
    neutral = identity(given[0])
    return torch.stack([neutral, *(neutral if v is None else v for v in vectors)]).to(device, dtype)


def stacked_bytes(form: Form, itemsize: int) -> int:
    """At most, of a form's part of a `Stack`, whoever is beside it."""
    match form:
        case LowRank():
            columns = form.A.shape[0] + (form.b is not None)
            return columns * ((form.A.shape[1] + form.B.shape[1] + 1) * itemsize + torch.long.itemsize)
        case Vector():
            given = form.scale if form.scale is not None else form.bias
            return 0 if given is None else 2 * 2 * given.numel() * itemsize  # a scale and a bias, and those of row 0
    return 0


class Stack:
    """The forms of a step's adapters, by tap. Adapters without a detour (rows only) take no part."""

    def __init__(self, adapters: Sequence[Sequence[Form]], dtype: torch.dtype, device: torch.device):
        channels: dict[tuple[Tap, tuple[Tap, ...]], list[tuple[int, LowRank]]] = {}
        vectors: dict[Tap, list[tuple[int, Vector]]] = {}
        for owner, forms in enumerate(adapters):
            for form in forms:
                if isinstance(form, LowRank):
                    channels.setdefault((form.adds_to, form.reads), []).append((owner, form))
                elif isinstance(form, Vector):
                    vectors.setdefault(form.tap, []).append((owner, form))
        self.adapters = len(adapters)
        self.vectors = {tap: Vectors(owned, dtype, device) for tap, owned in vectors.items()}
        self.channels: dict[Tap, list[Channel]] = {}
        for (adds_to, _), owned in channels.items():
            self.channels.setdefault(adds_to, []).append(Channel(owned, dtype, device))
        read = {tap for adds_to, reads in channels for tap in reads if tap != adds_to}
        self.kept = frozenset(read)  # taps whose final value a later tap reads
        self.taps = frozenset(self.vectors) | frozenset(self.channels) | self.kept

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        channels = (channel for together in self.channels.values() for channel in together)
        return sum(channel.bytes for channel in channels) + sum(vectors.bytes for vectors in self.vectors.values())


class Step:
    """One forward pass: a stack and whose rows are whose. Asked by the hooks at every tap.

    `logit_rows` says whose rows reach the output projection `lm_head`, where only some rows exist.
    `generators`, one an adapter, draw the dropout in training; without them there is none.
    """

    def __init__(
        self,
        stack: Stack,
        rows: RowOwners,
        *,
        lm_head: str,
        logit_rows: RowOwners | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ):
        self.stack = stack
        self._rows = {False: rows, True: logit_rows or rows}
        self._lm_head = lm_head
        self._generators = generators
        self._values: dict[Tap, Tensor] = {}
        self._plans: dict[tuple[bool, Layout], Tensor | None] = {}
        self._indices: dict[tuple[bool, tuple[int, ...]], Tensor] = {}

    @property
    def taps(self) -> frozenset[Tap]:
        return self.stack.taps

    def visit(self, tap: Tap, value: Tensor) -> Tensor:
        """The value of `tap` as this step's adapters leave it. value: [..., d], rows packed."""
        stack = self.stack
        rows = given = value.reshape(-1, value.shape[-1])
        at_head = tap.module == self._lm_head
        plan = self._rows[at_head]
        if tap in stack.vectors:
            vectors = stack.vectors[tap]
            # a step of one adapter needs no lookup by row, whose backward would scatter row by row
            index = 1 if stack.adapters == 1 else self._vector_index(at_head, vectors, rows.device)
            rows = _replace(rows, plan.bare, vectors.apply(_stretch(rows, plan.bare, len(rows)), index))
        if tap in stack.channels:
            own = rows
            for channel in stack.channels[tap]:
                rows = self._detour(rows, own, tap, channel, at_head)
        if tap in stack.kept:
            self._values[tap] = rows
        return value if rows is given else rows.view(value.shape)

    def release(self) -> None:
        """Forget the values kept for later taps."""
        self._values.clear()

    def _detour(self, rows: Tensor, own: Tensor, tap: Tap, channel: Channel, at_head: bool) -> Tensor:
        plan = self._rows[at_head]
        if all(plan.lengths[owner] == 0 for owner in channel.owners):
            return rows
        start, stop = channel.reach(plan)
        reads = [own if read == tap else self._values[read] for read in channel.reads]
        x = _stretch(reads[0], start, stop)
        for other in reads[1:]:
            x = x + _stretch(other, start, stop)
        if self._generators is not None and channel.dropouts:
            x = _drop_out(x, start, channel, plan, self._generators)
        return channel.add(rows, x, start, self._plan_of(at_head, channel))

    def _plan_of(self, at_head: bool, channel: Channel) -> Tensor | None:
        key = (at_head, channel.layout)
        if key not in self._plans:
            self._plans[key] = channel.plan(self._rows[at_head])
        return self._plans[key]

    def _vector_index(self, at_head: bool, vectors: Vectors, device: torch.device) -> Tensor:
        key = (at_head, vectors.owners)
        if key not in self._indices:
            lookup = torch.zeros(self.stack.adapters, dtype=torch.long)
            lookup[list(vectors.owners)] = torch.arange(1, len(vectors.owners) + 1)
            self._indices[key] = lookup[self._rows[at_head].owners].to(device)
        return self._indices[key]


def _drop_out(
    x: Tensor, start: int, channel: Channel, plan: RowOwners, generators: Sequence[torch.Generator]
) -> Tensor:
    """x [T', in], the rows from `start` on, after every adapter's own dropout."""
    pieces: list[Tensor] = []
    position = 0
    for owner in channel.owners:
        first, last = (edge - start for edge in plan.span(owner))
        p = channel.dropouts.get(owner, 0.0)
        piece = x[first:last]
        if p > 0 and last > first:
            noise = torch.rand(piece.shape, generator=generators[owner], device=piece.device)
            piece = piece * (noise >= p) / (1 - p)
        pieces += [x[position:first], piece]
        position = last
    return torch.cat([*pieces, x[position:]])


def _stretch(rows: Tensor, start: int, stop: int) -> Tensor:
    """rows[start:stop]; all of them as they are: the backward of a slice fills and adds a tensor as large."""
    return rows if (start, stop) == (0, len(rows)) else rows[start:stop]


def _replace(rows: Tensor, start: int, piece: Tensor) -> Tensor:
    """`rows` with [start, start + len(piece)) replaced; never in place: taps may be the residual stream."""
    if piece.shape[0] == rows.shape[0]:
        return piece
    return torch.cat([rows[:start], piece, rows[start + piece.shape[0] :]])
