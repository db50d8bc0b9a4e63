"""The static draw: plain draws with logits and rules at fixed addresses, recorded once for a size and replayed behind the static step
whose logits they take.

A recording of its own, so that the steps' are as many as before, and a draw that can't be recorded costs no step its recording.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from graft.server.runners.cuda.graphs import GraphError
from graft.server.runners.cuda.recordings import Record, Recordings
from graft.server.runners.cuda.static_sizes import rule_numbers
from graft.server.runners.eager.hidden import Outputs
from graft.server.sampling.torch_sampler import IDLE_RULE, PlainDraws, Way, draw_tokens


class StaticDraw:
    """One size and way of drawing. `logits` [rows, V]: where they lie, for all ways of a size."""

    def __init__(self, logits: Tensor, way: Way):
        self._logits, self._way = logits, way
        rows = len(logits)
        self._columns = torch.zeros(rule_numbers(rows), dtype=torch.float64, device=logits.device).view(-1, rows)

    def fill(self, logits: Tensor, plain: PlainDraws) -> None:
        """Put a step in. All is written, the rows too that nothing is drawn from: no earlier step's numbers are left to be read."""
        self._logits.copy_(logits)
        columns = np.repeat(np.array(IDLE_RULE)[:, None], len(logits), axis=1)
        columns[:, : plain.columns.shape[1]] = plain.columns
        values = torch.from_numpy(columns)
        if self._columns.is_cuda:
            values = values.pin_memory()  # a new piece of memory a step: the last step's may still be on its way
        self._columns.copy_(values, non_blocking=True)

    def draw(self) -> Tensor:
        """[2, rows]: ids, and 1 where a row is finite."""
        return torch.stack(draw_tokens(self._logits, self._columns, self._way))


class Drawer:
    """Static draws of every size and way that have come up, recorded."""

    def __init__(self, record: Record):
        self._record = record
        self._draws = Recordings[tuple[int, Way], tuple[StaticDraw, Callable[[], Tensor]]]("Drawing")
        self._logits: dict[int, Tensor] = {}  # by rows

    def run(self, logits: Tensor, plain: PlainDraws) -> Outputs | None:
        """Draw from the first rows of padded logits [rows, V]. The outputs' logits lie where the next step's of that size will.

        None where such draws can't be recorded at present.
        """
        rows, count = len(logits), plain.columns.shape[1]

        def make() -> tuple[StaticDraw, Callable[[], Tensor]]:
            kept = self._logits.setdefault(rows, torch.empty_like(logits))
            static = StaticDraw(kept, plain.way)
            static.fill(logits, plain)
            expected, replay = static.draw(), self._record(static.draw)
            if not torch.equal(replay(), expected):
                raise GraphError("Recorded draws give other tokens than the draws themselves.")
            return static, replay

        found = self._draws.get((rows, plain.way), make)
        if found is None:
            return None
        static, replay = found
        static.fill(logits, plain)
        # The next replay writes to the same memory, and the next step reads what this one drew.
        ids, finite = replay()[:, :count].clone()
        return Outputs(self._logits[rows], drawn=(ids, finite))
