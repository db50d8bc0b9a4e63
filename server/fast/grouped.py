"""The GPU's runner: transformers' own modules, with all low-rank detours of a tap in two Triton launches.

It is the eager runner with another `Channel`: the same stacked matrices, multiplied only where a row's adapter has
ranks. What the kernels owe is checked when an engine starts, against the eager detours on the same device.
"""

from collections.abc import Sequence
from subprocess import SubprocessError
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from graft.hub.base import Base
from graft.hub.detours import Channel, Rows
from graft.hub.forms import LowRank
from graft.hub.sites import Tap
from graft.server.cache import KVCache
from graft.server.kernels.grouped import COLUMNS, Segment, Work, add_low_rank, make_work
from graft.server.runner import EagerRunner, FastPathError

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}  # relative, of a step's rows


class GroupedChannel(Channel):
    """A channel whose rows meet only their own adapter's ranks. For inference: it has no backward."""

    def __init__(self, owned: Sequence[tuple[int, LowRank]], dtype: torch.dtype, device: torch.device):
        super().__init__(owned, dtype, device)
        self._ranks: dict[int, list[tuple[int, int, str]]] = {}
        for owner, first, last, activation in self.layout:
            groups = [(rank, min(COLUMNS, last - rank), activation) for rank in range(first, last, COLUMNS)]
            self._ranks.setdefault(owner, []).extend(groups)

    def plan(self, whose: Rows) -> Work:
        """The tables of the kernels for a step's rows."""
        own = [Segment(rows, self._ranks.get(owner, ())) for owner, rows in enumerate(whose.lengths)]
        return make_work([Segment(whose.bare, ()), *own], self.reach(whose)[0], self.A.device)

    def add(self, rows: Tensor, x: Tensor, start: int, plan: Any) -> Tensor:
        """As Channel.add; `plan` holds `start` already."""
        return add_low_rank(rows, x, self.A, self.a, self.B, plan)


class GroupedRunner(EagerRunner):
    """A `Runner` (server/runner.py) for every family on a GPU."""

    channel = GroupedChannel


def grouped_runner(base: Base, cache: KVCache) -> GroupedRunner:
    """The GPU's runner of a base, its kernels compiled and checked. Raises FastPathError, saying why, where they fail."""
    if base.dtype not in _TOLERANCE:
        raise FastPathError(f"The GPU's kernels don't know the dtype {base.dtype}.")
    try:
        error = disagreement(base.spec.hidden_size, base.dtype, base.device)
    except (TritonError, RuntimeError, OSError, SubprocessError) as failure:  # Triton calls a C compiler
        raise FastPathError(f"Triton's kernels don't run on {base.device}: {failure}") from failure
    if not error <= _TOLERANCE[base.dtype]:
        raise FastPathError(f"Triton's kernels disagree with torch on {base.device} (relative error {error:.1g}).")
    return GroupedRunner(base, cache)


def disagreement(width: int, dtype: torch.dtype, device: torch.device) -> float:
    """The relative error of the kernels' result on random rows [T, width], decoding and prefill, biases and all."""
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def form(rank: int, activation: str) -> LowRank:
        A, B = random(rank, width) / width**0.5, random(rank, width) / rank**0.5
        tap = Tap("", "in")
        return LowRank((tap,), tap, A, B, random(rank), random(width), activation)

    owned = [(0, form(8, "none")), (2, form(40, "gelu_new"))]
    errors = []
    for whose in (Rows(3, (1, 2, 5)), Rows(3, (1, 2, 100))):
        rows, x = (random(whose.total, width).to(device, dtype) for _ in range(2))
        expected, got = (_added(kind(owned, dtype, device), rows, x, whose) for kind in (Channel, GroupedChannel))
        errors.append(float((got - expected).float().norm() / expected.float().norm()))
    return float(torch.tensor(errors).max())  # a NaN counts


def _added(channel: Channel, rows: Tensor, x: Tensor, whose: Rows) -> Tensor:
    start, stop = channel.reach(whose)
    return channel.add(rows, x[start:stop], start, channel.plan(whose))
