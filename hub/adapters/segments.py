"""Several adapters in one pass, each alone with its own rows.

The server lays the ranks of a batch side by side (hub/adapters/batched_apply.py), which suits many adapters of few rows. A
training pass is the opposite, a few adapters of many rows: here every adapter is a `Step` of its own over its
segment of the batch. No arithmetic of one adapter ever sees another's rows, so one that diverges can't touch the
others, and each is computed as if it were alone. Knows nothing of losses.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from graft.hub.adapters.batched_apply import Step
from graft.hub.base.hook_points import Tap
from graft.hub.base.stored_weights import no_pause


class Segments:
    """A step (hub/base/hooks.py asks it at every tap) of adapters that own `row_counts[i]` rows one after another.

    `steps[i]`: of adapter i alone, over its rows. `pause`: called before each, wherever others can go on.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        row_counts: Sequence[int],
        logit_counts: Sequence[int],
        *,
        lm_head: str,
        pause: Callable[[], None] = no_pause,
    ):
        self._steps = steps
        self._counts = {False: list(row_counts), True: list(logit_counts)}
        self._lm_head = lm_head
        self._pause = pause
        self.taps = frozenset().union(*(step.taps for step in steps))

    def visit(self, tap: Tap, value: Tensor) -> Tensor:
        """The value of `tap` as the adapters leave it. value: [..., d], rows packed."""
        if len(self._steps) == 1:
            return self._steps[0].visit(tap, value)
        rows = value.reshape(-1, value.shape[-1])
        segments = rows.split(self._counts[tap.module == self._lm_head])
        changed = [
            self._visit(step, tap, segment) if tap in step.taps and len(segment) else segment
            for step, segment in zip(self._steps, segments, strict=True)
        ]
        if all(new is old for new, old in zip(changed, segments, strict=True)):
            return value  # a tap that is only read
        return torch.cat(changed).view(value.shape)

    def _visit(self, step: Step, tap: Tap, segment: Tensor) -> Tensor:
        self._pause()
        return step.visit(tap, segment)

    def release(self) -> None:
        """Forget the values kept for later taps."""
        for step in self._steps:
            step.release()
