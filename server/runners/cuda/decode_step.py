"""The static step: decoding with every input at a fixed address, so that it can be recorded once and replayed.

A step in which every sequence has one row is padded up to one of a few sizes. All it brings - token ids, positions,
where keys and values go, block tables, tiles - is one copy into one buffer; the forward reads nothing else that
changes. What carries it out, a recorded graph or a plain call, is the caller's choice (`Record`).

Padding rows belong to the bare base, write to the trash block and read only that.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from graft.hub.base.model import Base
from graft.server.cache.step import BLOCK_ROWS, TRASH_BLOCK, Batch, blocks_for
from graft.server.cache.tensors import KVCache
from graft.server.runners.cuda.adapter_table import AdapterTable
from graft.server.runners.cuda.detours import GroupedStep
from graft.server.runners.cuda.kernels.attention import attend_rows
from graft.server.runners.cuda.kernels.detours import FEW_ROWS, Tiles, cut
from graft.server.runners.cuda.launches import LaunchPlan, Layouts
from graft.server.runners.cuda.recordings import Record, Recordings
from graft.server.runners.cuda.static_sizes import SIZES, input_numbers, padded


class Inputs:
    """All that changes from step to step, in one buffer of int64 on the device."""

    def __init__(self, rows: int, blocks: int, device: torch.device):
        """`blocks`: the most that a row's table has."""
        self.rows = rows
        self._buffer = torch.zeros(input_numbers(rows, blocks), dtype=torch.int64, device=device)
        self.ids, self.positions, self.slots, self.firsts, self.lengths = self._buffer[: 5 * rows].view(5, rows)
        self.tiles = Tiles(self._buffer[5 * rows : 8 * rows].view(rows, 3), FEW_ROWS)
        self.tables = self._buffer[8 * rows :]  # [S]: a padding row's one block, then row after row

    def fill(self, batch: Batch, slots: tuple[int, ...], drawn: Tensor) -> None:
        """Put a step in. `slots`: by owner, the bare base's 0 first. `drawn`: what ids below 0 stand for, which nobody waits for."""
        runs, pad = batch.runs, self.rows - len(batch.runs)
        counts = [run.start // BLOCK_ROWS + 1 for run in runs]
        tables = [TRASH_BLOCK, *(block for run, n in zip(runs, counts, strict=True) for block in run.blocks[:n])]
        tiles = cut([*zip(batch.lengths, slots, strict=True), (pad, 0)], FEW_ROWS)
        fields = [
            [run.tokens[0] for run in runs] + [0] * pad,
            [run.position for run in runs] + [0] * pad,
            [run.blocks[n - 1] * BLOCK_ROWS + run.start % BLOCK_ROWS for run, n in zip(runs, counts, strict=True)]
            + [TRASH_BLOCK * BLOCK_ROWS] * pad,
            [*np.cumsum([1, *counts])[:-1].tolist(), *[0] * pad],
            [run.start + 1 for run in runs] + [1] * pad,
            [number for tile in tiles for number in tile] + [0] * (3 * (self.rows - len(tiles))),
        ]
        values = torch.from_numpy(np.array([*(n for field in fields for n in field), *tables], np.int64))
        if self._buffer.is_cuda:
            values = values.pin_memory()  # a new piece of memory a step: the last step's may still be on its way
        self._buffer[: len(values)].copy_(values, non_blocking=True)
        if any(run.tokens[0] < 0 for run in runs):
            unknown = self.ids < 0
            self.ids.copy_(torch.where(unknown, drawn[torch.where(unknown, -1 - self.ids, 0)], self.ids))


class StaticStep:
    """One size of step, and its forward. `layout`: None where no adapter has a detour."""

    def __init__(self, base: Base, cache: KVCache, layout: LaunchPlan | None, rows: int):
        most_blocks = min(blocks_for(base.spec.max_positions), cache.blocks - 1)  # all but the trash block
        self.inputs = Inputs(rows, most_blocks, base.device)
        self._base, self._cache, self._layout = base, cache, layout

    def forward(self) -> Tensor:
        """The logits [rows, V] of what the inputs hold."""
        inputs, visitor = self.inputs, None
        if self._layout is not None:
            visitor = GroupedStep(self._layout, inputs.tiles, inputs.tiles, self._base.spec.parts.lm_head)
        return self._base.forward(self._base.embed(inputs.ids), inputs.positions, self, visitor)

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
        """The step is its own AttentionContext (hub/adapters/packed_attention.py)."""
        inputs = self.inputs
        keys, values = (x[layer].flatten(0, 1) for x in (self._cache.keys, self._cache.values))
        keys[inputs.slots] = key
        values[inputs.slots] = value
        return attend_rows(
            query, keys, values, inputs.tables, inputs.firsts, inputs.lengths,
            scaling=scaling, window=window, softcap=softcap,
        )  # fmt: skip


class Decoder:
    """Static steps of every size that has come up, recorded."""

    def __init__(self, base: Base, cache: KVCache, bank: AdapterTable, layouts: Layouts, record: Record):
        self._base, self._cache, self._bank, self._layouts, self._record = base, cache, bank, layouts, record
        self._steps = Recordings[tuple[int, LaunchPlan | None], tuple[StaticStep, Callable[[], Tensor]]]("Decoding")
        self._layout: LaunchPlan | None = None  # the latest of a step with adapters

    @property
    def working(self) -> bool:
        """Whether steps are recorded, or none has been asked for."""
        return self._steps.working

    def takes(self, batch: Batch) -> bool:
        """Whether a step can be carried out here: one row and one row of logits a sequence, and nothing else."""
        singles = all(
            run.length == 1 and run.logits == 1 and run.virtual is None and not run.hidden for run in batch.runs
        )
        return singles and len(batch.runs) <= SIZES[-1]

    def run(self, batch: Batch, drawn: Tensor) -> Tensor | None:
        """Logits [rows, V], padded, where the next run writes too. None where such a step can't be recorded at present.

        `drawn`: the tokens that ids below 0 stand for.
        """
        layout = self._layouts.roomy_plan(batch.adapters)
        rows = padded(len(batch.runs))
        slots = (0, *(self._bank.slot(digest) for digest in batch.adapters))

        def make() -> tuple[StaticStep, Callable[[], Tensor]]:
            step = StaticStep(self._base, self._cache, layout, rows)
            step.inputs.fill(batch, slots, drawn)
            return step, self._record(step.forward)

        found = self._steps.get((rows, layout), make)
        if layout is not None and layout is not self._layout:
            self._layout = layout
            self._steps.forget(lambda shape: shape[1] not in (None, layout))  # won't be asked for again
        if found is None:
            return None
        step, replay = found
        step.inputs.fill(batch, slots, drawn)
        return replay()
