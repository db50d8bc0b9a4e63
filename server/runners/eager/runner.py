"""The generic runner, and the reference for the others: eager torch.

It drives transformers' own model classes through `Base.forward`, with the step's adapters stacked side by side, and serves
every family on every device. runners/cpu and runners/cuda replace it, or its adapters' arithmetic, where that is faster.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step, stacked_bytes
from graft.hub.adapters.serving_forms import Form, at, form_bytes
from graft.hub.base.model import Base
from graft.server.cache.step import Batch
from graft.server.cache.tensors import KVCache
from graft.server.runners.eager.attention import PagedAttention
from graft.server.runners.eager.hidden import Outputs, run_forward, with_sums
from graft.server.runners.protocol import Prepared, no_wait
from graft.server.sampling.params import Draw, Score, StepResult
from graft.server.sampling.torch_sampler import TorchSampler

_KEPT_STACKS = 4


@dataclass(frozen=True)
class EagerDetours:
    """As `prepare` leaves them. `stacked`: bytes of their place in a stack; `bytes`: of themselves and that."""

    forms: tuple[Form, ...]
    stacked: int
    bytes: int


class EagerRunner:
    """The reference: eager torch, any family, any device."""

    begins_early = False
    meets_often = True

    def __init__(self, base: Base, cache: KVCache):
        self.cache = cache
        self._base = base
        self._adapters: dict[str, EagerDetours] = {}
        self._stacks: OrderedDict[tuple[str, ...], Stack] = OrderedDict()

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(self._adapters)

    def size(self, forms: Sequence[Form]) -> int:
        return sum(form_bytes(form) for form in forms) + self._stacked(forms)

    def prepare(self, forms: Sequence[Form]) -> EagerDetours:
        ready = tuple(at(form, self._base.dtype, self._base.device) for form in forms)
        return EagerDetours(ready, self._stacked(ready), self.size(ready))

    def _stacked(self, forms: Sequence[Form]) -> int:
        return sum(stacked_bytes(form, self._base.dtype.itemsize) for form in forms)

    def add(self, digest: str, prepared: Prepared) -> None:
        assert isinstance(prepared, EagerDetours)
        self._adapters[digest] = prepared

    def remove(self, digest: str) -> None:
        del self._adapters[digest]
        for active in [active for active in self._stacks if digest in active]:
            del self._stacks[active]

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Logits [n, V] of the wanted rows."""
        return self.outputs(batch).logits

    @torch.inference_mode()
    def outputs(self, batch: Batch) -> Outputs:
        self.cache.copy(batch.copies)
        rows, positions, wanted = pack_rows(batch, self._base)
        attention = PagedAttention(batch, self.cache)
        return run_forward(self._base, batch, rows, positions, attention, self._step(batch), wanted)

    def begin(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> Callable[[], StepResult]:
        return partial(self.step, batch, draws, scores, ready)

    @torch.inference_mode()
    def step(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> StepResult:
        sampler = TorchSampler(draws, scores, self._base.device)  # before the step: its data travel while that runs
        outputs = self.outputs(batch)
        ready()
        return with_sums(sampler(outputs.logits), batch, outputs)

    def _step(self, batch: Batch) -> Step | None:
        """Whose rows are whose; None where no active adapter has a detour, so that the base runs untouched."""
        if not batch.adapters:
            return None
        active, stack = self._stack(batch.adapters)
        if not stack.taps:
            return None
        place = {digest: i for i, digest in enumerate(batch.adapters, start=1)}
        rows, logits = (
            RowOwners(lengths[0], tuple(lengths[place[digest]] if digest in place else 0 for digest in active))
            for lengths in (batch.lengths, batch.logit_lengths)
        )
        return Step(stack, rows, lm_head=self._base.spec.parts.lm_head, logit_rows=logits)

    def _stack(self, wanted: tuple[str, ...]) -> tuple[tuple[str, ...], Stack]:
        """A stack that holds the wanted adapters, and whose they are: a recent one, where it is not much too large."""
        for active in reversed(self._stacks):
            if len(active) <= 2 * len(wanted) and set(wanted) <= set(active):
                self._stacks.move_to_end(active)
                return active, self._stacks[active]
        stack = Stack([self._adapters[d].forms for d in wanted], self._base.dtype, self._base.device)
        self._stacks[wanted] = stack
        room = sum(adapter.stacked for adapter in self._adapters.values())  # which counts each adapter once
        while len(self._stacks) > _KEPT_STACKS or sum(one.bytes for one in self._stacks.values()) > room:
            self._stacks.popitem(last=False)
        return wanted, stack


def pack_rows(batch: Batch, base: Base) -> tuple[Tensor, Tensor, Tensor]:
    """A step's embedded rows [T, H], positions [T], indices of the rows that want logits [n]."""
    positions: list[int] = []
    wanted: list[int] = []
    pieces: list[Tensor] = []
    pending: list[int] = []
    for run in batch.runs:
        positions.extend(range(run.position, run.position + run.length))
        wanted.extend(range(len(positions) - run.logits, len(positions)))
        if run.virtual is None:
            pending.extend(run.tokens)
            continue
        pieces += [_embed(pending, base), run.virtual.to(base.device, base.dtype)]
        pending = []
    pieces.append(_embed(pending, base))
    rows = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return rows, torch.tensor(positions, device=base.device), torch.tensor(wanted, dtype=torch.long, device=base.device)


def _embed(tokens: list[int], base: Base) -> Tensor:
    return base.embed(torch.tensor(tokens, dtype=torch.long, device=base.device))
