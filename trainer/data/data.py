"""Examples -> token sequences -> the packed rows of one pass.

A `Sequence` knows which of its positions carry a loss: the completion's ids and EOS, told by position, never by
id, so that EOS is learned although many bases pad with it. A `Pack` lays the sequences of several adapters one
after another, sorted by adapter, as hub/adapters/batched_apply.py asks. Knows nothing of optimisers or forwards.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows
from graft.hub.errors import DataError
from graft.hub.evaluation.task_data import Example
from graft.hub.evaluation.tokenization import cut_left, encode, end_of

_POOL = 16  # batches whose sequences are sorted by length together


@dataclass(frozen=True)
class Sequence:
    """Token ids, of which those from `answer_start` on are learned."""

    ids: tuple[int, ...]
    answer_start: int

    @property
    def learned(self) -> int:
        return len(self.ids) - self.answer_start


def sequences_of(examples: Iterable[Example], tokenizer: Any, limit: int, most: int | None = None) -> list[Sequence]:
    """Examples as sequences of at most `limit` tokens: long prompts lose their beginning, completions stay whole.

    `most`: what the limit could be on this base. Raises DataError for a completion that leaves no room for a single token of its prompt.
    """
    end = end_of(tokenizer)
    made = []
    for number, example in enumerate(examples, start=1):
        prompt, completion = encode(example, tokenizer)
        answer = [*completion, end]
        if len(answer) >= limit:
            raise DataError(
                f"{example.where or f'Example {number}'}: its completion has {len(answer)} tokens, which leaves no room "
                f"for a prompt within {limit}{_advice(limit, most)}"
            )
        prompt = cut_left(prompt, limit - len(answer))
        made.append(Sequence((*prompt, *answer), len(prompt)))
    return made


def _advice(limit: int, most: int | None) -> str:
    if most is None or limit < most:
        return f". Shorten it, or raise --max-length{f' (to {most} at most)' if most else ''}."
    return ", all that this base has for a text. Shorten it, or leave the example out."


def without_overlap(examples: list[Example], held_out: Iterable[Example]) -> list[Example]:
    """The training examples whose prompt is not among the evaluation's. Raises DataError when none is left."""
    taken = {example.prompt for example in held_out}
    kept = [example for example in examples if example.prompt not in taken]
    if not kept:
        raise DataError("Every training prompt is in the evaluation data too: there is nothing left to train on.")
    return kept


class Order:
    """An endless stream of batches: epochs in random order, sequences of like length together.

    (Attention pads to the longest sequence of a pass, so like lengths waste the least.) Its place can be saved.
    """

    def __init__(self, sequences: list[Sequence], batch_size: int, seed: int):
        self._sequences, self._batch_size = sequences, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._begin()

    def next(self) -> list[Sequence]:
        if self._drawn == len(self._groups):
            self._begin()
        self._drawn += 1
        return [self._sequences[i] for i in self._groups[self._drawn - 1]]

    def place(self) -> tuple[Tensor, int]:
        """(generator state at the epoch's beginning, batches drawn since)."""
        return self._epoch_start, self._drawn

    def go_to(self, epoch_start: Tensor, drawn: int) -> None:
        self._generator.set_state(epoch_start)
        self._begin()
        self._drawn = drawn

    def _begin(self) -> None:
        self._epoch_start, self._drawn = self._generator.get_state(), 0
        order = torch.randperm(len(self._sequences), generator=self._generator).tolist()
        pool, groups = self._batch_size * _POOL, []
        for start in range(0, len(order), pool):
            chunk = sorted(order[start : start + pool], key=lambda i: len(self._sequences[i].ids))
            groups += [chunk[i : i + self._batch_size] for i in range(0, len(chunk), self._batch_size)]
        shuffled = torch.randperm(len(groups), generator=self._generator).tolist()
        self._groups = [groups[i] for i in shuffled]


@dataclass(frozen=True)
class Pack:
    """The sequences of one pass by adapter: `owned[i]` belongs to adapter i of the pass."""

    owned: tuple[tuple[Sequence, ...], ...]

    @property
    def sequences(self) -> list[Sequence]:
        return [sequence for own in self.owned for sequence in own]


@dataclass(frozen=True)
class Rows:
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


def lay_out(pack: Pack, forms: list[tuple[Form, ...]], embed: Any, device: torch.device) -> Rows:
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
        self.total, self.lengths, self.targets, self.wanted = 0, [], [], []
        self._pieces, self._positions, self._prefixes, self._leaders = [], [], [], []
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

    def rows(self, device: torch.device) -> Rows:
        return Rows(
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


def passes(owned: list[list[Sequence]], virtual: list[int], limit: int) -> list[list[list[Sequence]]]:
    """A step's sequences by adapter, cut into passes of at most `limit` rows (one sequence at least).

    `virtual[i]`: input rows that adapter i adds once to a pass with sequences of its own.
    """
    made: list[list[list[Sequence]]] = []
    room = 0
    for owner, own in enumerate(owned):
        for sequence in own:
            text = len(sequence.ids) - 1
            if not made or text + (0 if made[-1][owner] else virtual[owner]) > room:
                made.append([[] for _ in owned])
                room = limit
            room -= text + (0 if made[-1][owner] else virtual[owner])
            made[-1][owner].append(sequence)
    return made
