"""A step's visits on a GPU: what hub/adapters/batched_apply.py's Step does to a tap's rows, by Triton's kernels over the bank's table.

The order at a tap is the same: the base's value, vectors, then the sum of all low-rank detours.
"""

from torch import Tensor

from graft.hub.base.hook_points import Tap
from graft.server.runners.cuda.kernels.detours import Tiles, add_low_rank, add_vector, low_rank_sums
from graft.server.runners.cuda.launches import LaunchPlan, Shrink, Site

_NOTHING = Site()


class GroupedStep:
    """A Visitor (hub/base/hooks.py) for one forward. `head_tiles`: of the rows that reach the output projection `lm_head`."""

    def __init__(self, layout: LaunchPlan, tiles: Tiles, head_tiles: Tiles, lm_head: str):
        self._layout = layout
        self._tiles = {False: tiles, True: head_tiles}
        self._lm_head = lm_head
        self._values: dict[Tap, Tensor] = {}
        self._sums: dict[Shrink, Tensor] = {}

    @property
    def taps(self) -> frozenset[Tap]:
        return self._layout.taps

    def visit(self, tap: Tap, value: Tensor) -> Tensor:
        rows = given = value.reshape(-1, value.shape[-1])
        if not len(rows):
            return value
        site, table = self._layout.sites.get(tap, _NOTHING), self._layout.table
        tiles = self._tiles[tap.module == self._lm_head]
        for place in site.vectors:
            rows = add_vector(rows, table, tiles, place)
        own = rows
        for expand in site.expands:
            sums = self._run_shrink(expand.shrink, tap, own, tiles)
            rows = add_low_rank(rows, sums, table, tiles, expand.place, expand.column)
        if tap in self._layout.kept:
            self._values[tap] = rows
        return value if rows is given else rows.view(value.shape)

    def release(self) -> None:
        """Forget what was kept for later taps."""
        self._values.clear()
        self._sums.clear()

    def _run_shrink(self, shrink: Shrink, tap: Tap, own: Tensor, tiles: Tiles) -> Tensor:
        """The sums of a shrink, launched by the first expand that wants them."""
        if shrink not in self._sums:
            x, *others = (own if read == tap else self._values[read] for read in shrink.reads)
            for other in others:
                x = x + other
            self._sums[shrink] = low_rank_sums(x, self._layout.table, tiles, shrink.columns)
        return self._sums[shrink]
