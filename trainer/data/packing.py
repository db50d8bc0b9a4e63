"""Examples -> token sequences -> the packed rows of one pass.

A `TokenSequence` knows which of its positions carry a loss: the completion's ids and EOS, told by position, never by
id, so that EOS is learned although many bases pad with it. A `Pack` lays the sequences of several adapters one
after another, sorted by adapter, as hub/adapters/batched_apply.py asks. Knows nothing of optimisers or forwards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows
from graft.trainer.data.sequences import TokenSequence


@dataclass(frozen=True)
class Pack:
    """The sequences of one pass by adapter: `owned[i]` belongs to adapter i of the pass."""

    owned: tuple[tuple[TokenSequence, ...], ...]

    @property
    def sequences(self) -> list[TokenSequence]:
        return [sequence for own in self.owned for sequence in own]


@dataclass(frozen=True)
class PackedRows:
    """A pack as the base takes it. n rows carry a loss.

    rows [T, H], positions [T], logit_rows [n], targets [n]; row_counts and logit_counts: of every adapter.
    lengths, prefixes, leaders [B]: of the sequences as the attention takes them. A soft prompt is a sequence of its
    own, which all texts of its adapter follow: its rows run once a pass, not once a text.
    """

    rows: Tensor
    positions: Tensor
    lengths: list[int]
    prefixes: list[CacheRows | None]
    leaders: list[int | None]
    logit_rows: Tensor
    targets: Tensor
    row_counts: tuple[int, ...]
    logit_counts: tuple[int, ...]


def lay_out(
    pack: Pack, forms: list[tuple[Form, ...]], embed: Callable[[Tensor], Tensor], device: torch.device
) -> PackedRows:
    """The rows of a pack whose adapters have these forms."""
    ids = [id for sequence in pack.sequences for id in sequence.ids[:-1]]  # nothing is predicted after the last
    embedded = embed(torch.tensor(ids, device=device))
    texts = iter(embedded.split([len(sequence.ids) - 1 for sequence in pack.sequences]))
    layout = _Layout()
    for own, adapter in zip(pack.owned, forms, strict=True):
        prompt = virtual_rows(adapter)
        prefix = next((form for form in adapter if isinstance(form, CacheRows)), None)
        start, leader = prefix.text_start if prefix else 0, None
        if prompt is not None:
            start, leader = prompt.shape[0], len(layout.lengths)
            layout.add(prompt.to(embedded.dtype), 0, None, None)
        for sequence in own:
            row = layout.add(next(texts), start, prefix, leader)
            layout.wanted.append(torch.arange(row + sequence.answer_start - 1, layout.total))
            layout.targets += sequence.ids[sequence.answer_start :]
        layout.end_adapter()
    return layout.rows(device)


class _Layout:
    """Rows as they are laid one after another."""

    def __init__(self) -> None:
        self.total = 0
        self.lengths: list[int] = []
        self.targets: list[int] = []
        self.wanted: list[Tensor] = []
        self._pieces: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._prefixes: list[CacheRows | None] = []
        self._leaders: list[int | None] = []
        self._row_ends, self._target_ends = [0], [0]

    def add(self, piece: Tensor, start: int, prefix: CacheRows | None, leader: int | None) -> int:
        """One sequence of rows [n, H] whose positions begin at `start`; the index of its first row."""
        self._pieces.append(piece)
        self._positions.append(torch.arange(start, start + len(piece)))
        self._prefixes.append(prefix)
        self._leaders.append(leader)
        self.lengths.append(len(piece))
        self.total += len(piece)
        return self.total - len(piece)

    def end_adapter(self) -> None:
        self._row_ends.append(self.total)
        self._target_ends.append(len(self.targets))

    def rows(self, device: torch.device) -> PackedRows:
        return PackedRows(
            torch.cat(self._pieces),
            torch.cat(self._positions).to(device),
            self.lengths,
            self._prefixes,
            self._leaders,
            torch.cat(self.wanted).to(device),
            torch.tensor(self.targets, device=device),
            tuple(stop - start for start, stop in pairwise(self._row_ends)),
            tuple(stop - start for start, stop in pairwise(self._target_ends)),
        )


def virtual_rows(forms: tuple[Form, ...]) -> Tensor | None:
    """The input rows of a soft prompt [P, H], None where there is none."""
    return next((form.rows for form in forms if isinstance(form, InputRows)), None)
