"""Which sequences make a batch, and how a step's batches are cut into passes that fit into memory."""

import torch
from torch import Tensor

from graft.trainer.data.sequences import TokenSequence

_POOL = 16  # batches whose sequences are sorted by length together


class Order:
    """An endless stream of batches: epochs in random order, sequences of like length together.

    (Attention pads to the longest sequence of a pass, so like lengths waste the least.) Its place can be saved.
    """

    def __init__(self, sequences: list[TokenSequence], batch_size: int, seed: int):
        self._sequences, self._batch_size = sequences, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._begin()

    def next(self) -> list[TokenSequence]:
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


def passes(owned: list[list[TokenSequence]], virtual: list[int], limit: int) -> list[list[list[TokenSequence]]]:
    """A step's sequences by adapter, cut into passes of at most `limit` rows (one sequence at least).

    `virtual[i]`: input rows that adapter i adds once to a pass with sequences of its own.
    """
    made: list[list[list[TokenSequence]]] = []
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
