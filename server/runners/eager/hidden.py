"""What a step computes for its rows; hidden states are read on the way through transformers' own modules."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from graft.hub.base.attention import AttentionContext
from graft.hub.base.hook_points import Tap, last_hidden
from graft.hub.base.hooks import Visitor
from graft.hub.base.model import Base
from graft.server.cache.step import Batch
from graft.server.sampling.params import HiddenSum, StepResult


@dataclass(frozen=True)
class Outputs:
    """`logits` [n, V] and `hidden` [m, H] of the rows that want them. `hidden`: None where none do.

    `drawn`: ids and whether their rows are finite, where the step has drawn them itself.
    """

    logits: Tensor
    hidden: Tensor | None = None
    drawn: tuple[Tensor, Tensor] | None = None


class HiddenRows:
    """A Visitor that keeps some rows' hidden states as `inner`, the step's own visitor if it has one, leaves them."""

    def __init__(self, tap: Tap, wanted: Sequence[int], device: torch.device, inner: Visitor | None):
        self._tap, self._inner = tap, inner
        self._wanted = torch.tensor(wanted, dtype=torch.long, device=device)
        self._rows: Tensor | None = None

    @property
    def taps(self) -> frozenset[Tap]:
        return frozenset({self._tap}) | (self._inner.taps if self._inner else frozenset())

    @property
    def rows(self) -> Tensor:
        """[m, H], once the forward is over."""
        assert self._rows is not None
        return self._rows

    def visit(self, tap: Tap, value: Tensor) -> Tensor:
        if self._inner is not None and tap in self._inner.taps:
            value = self._inner.visit(tap, value)
        if tap == self._tap:
            self._rows = value.reshape(-1, value.shape[-1])[self._wanted]
        return value

    def release(self) -> None:
        if self._inner is not None:
            self._inner.release()


def run_forward(
    base: Base,
    batch: Batch,
    rows: Tensor,
    positions: Tensor,
    attention: AttentionContext,
    step: Visitor | None,
    wanted: Tensor,
) -> Outputs:
    """`Base.forward`, and the hidden states that the batch wants beside the logits of the rows `wanted`."""
    if not any(batch.hidden_lengths):
        return Outputs(base.forward(rows, positions, attention, step, wanted))
    reader = HiddenRows(last_hidden(base.spec), batch.hidden_rows, base.device, step)
    logits = base.forward(rows, positions, attention, reader, wanted)
    return Outputs(logits, reader.rows)


def with_sums(result: StepResult, batch: Batch, outputs: Outputs) -> StepResult:
    """What was drawn and scored, and for each run that wants hidden states the sum of its rows'."""
    if outputs.hidden is None:
        return result
    return replace(result, hidden=_sums(outputs.hidden, batch.hidden_counts))


def _sums(rows: Tensor, counts: Sequence[int]) -> list[HiddenSum | None]:
    """The sum of each stretch of rows [m, H]; None for one that is not finite."""
    sums = torch.stack([part.sum(0, dtype=torch.float64) for part in rows.split(list(counts))])
    finite = sums.isfinite().all(dim=1).tolist()
    return [one if ok else None for one, ok in zip(sums.cpu().numpy(), finite, strict=True)]
