"""One step of the engine, described: which rows run, for whom, and where their keys and values lie.

Pure: no torch, no weights. The engine builds one `Batch` a step; a runner (runner.py, fast/) carries it out.
What a runner owes:

1. `copies` are done before anything else.
2. Rows are packed run after run, in the given order: the bare base's first, then adapter by adapter.
3. In every layer the keys and values of ALL rows are written before any row attends: a run may read blocks that
   another run of the same step fills (a prefix shared within a step).
4. The row at cache index c attends to the indices 0..c of its own block table; a window w leaves those with
   c - index < w.
5. The result is the logits [n, V] of the rows that want them, in row order, and for each run that wants hidden states (the
   output projection's input, without the adapter's own changes there) the sum of its rows'.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_ROWS = 16  # cache rows in a block
TRASH_BLOCK = 0  # never handed out: padding writes go there


def blocks_for(rows: int) -> int:
    """How many blocks so many rows take."""
    return -(-rows // BLOCK_ROWS)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of one sequence.

    Cache index i lies in block `blocks[i // BLOCK_ROWS]` at row `i % BLOCK_ROWS`. The first row has the cache index
    `start` and the position `position`; both count up by one a row.
    """

    owner: int  # 0: the bare base; i: batch.adapters[i - 1]
    tokens: Sequence[int]  # input ids, one a row
    start: int
    position: int
    blocks: Sequence[int]
    logits: int = 0  # how many of the last rows want logits
    virtual: "Tensor | None" = None  # [P, H] in embedding space, in the place of `tokens` (soft prompts)
    hidden: int = 0  # how many of the last rows want their hidden states summed

    @property
    def length(self) -> int:
        return len(self.tokens) if self.virtual is None else len(self.virtual)


@dataclass(frozen=True)
class Batch:
    """A step: runs sorted by owner, single rows before longer runs within one owner."""

    runs: tuple[Run, ...]
    adapters: tuple[str, ...] = ()  # digests of the adapters that take part, as the runner knows them
    copies: tuple[tuple[int, int], ...] = ()  # (from, to): whole blocks copied in every layer before the step

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Rows by owner, the bare base's first."""
        return self._by_owner(lambda run: run.length)

    @cached_property
    def logit_lengths(self) -> tuple[int, ...]:
        """Rows that want logits by owner, the bare base's first."""
        return self._by_owner(lambda run: run.logits)

    @cached_property
    def hidden_lengths(self) -> tuple[int, ...]:
        """Rows that want hidden states by owner, the bare base's first."""
        return self._by_owner(lambda run: run.hidden)

    @property
    def rows(self) -> int:
        return sum(self.lengths)

    @property
    def hidden_rows(self) -> list[int]:
        """Which rows want hidden states."""
        ends = accumulate(run.length for run in self.runs)
        return [row for run, end in zip(self.runs, ends, strict=True) for row in range(end - run.hidden, end)]

    @property
    def hidden_counts(self) -> list[int]:
        """How many rows each sum of hidden states is of."""
        return [run.hidden for run in self.runs if run.hidden]

    def _by_owner(self, count: Callable[[Run], int]) -> tuple[int, ...]:
        totals = [0] * (len(self.adapters) + 1)
        for run in self.runs:
            totals[run.owner] += count(run)
        return tuple(totals)


def make_batch(
    wanted: Sequence[tuple[str | None, Run]], copies: Sequence[tuple[int, int]] = ()
) -> tuple[Batch, list[int]]:
    """Sort runs by adapter. `wanted`: (digest or None, run with any owner).

    Returns the batch and, for each of its runs, the index it had in `wanted`.
    """
    adapters = tuple(sorted({digest for digest, _ in wanted if digest is not None}))
    owner = {None: 0} | {digest: i for i, digest in enumerate(adapters, start=1)}
    order = sorted(range(len(wanted)), key=lambda i: (owner[wanted[i][0]], wanted[i][1].length > 1))
    runs = tuple(_with_owner(wanted[i][1], owner[wanted[i][0]]) for i in order)
    return Batch(runs, adapters, tuple(copies)), order


def _with_owner(run: Run, owner: int) -> Run:
    return Run(owner, run.tokens, run.start, run.position, run.blocks, run.logits, run.virtual, run.hidden)
