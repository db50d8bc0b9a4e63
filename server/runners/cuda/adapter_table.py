"""Adapters on a GPU, each where it lies: its matrices in one allocation whose addresses stay while it is resident.

`prepare` brings an adapter's matrices over on a stream of their own, from pinned memory, while steps run; `add` gives
it a slot and writes one row of the table that says, for every place of the base, where the slot's matrices are
(kernels/detours.py). Nothing else changes when adapters come and go, so a step that was recorded stays valid.

Knows forms, slots and addresses; which launches a step makes of them is layout.py's business.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graft.hub.adapters.serving_forms import Form, LowRank, Vector
from graft.hub.base.hook_points import Tap
from graft.server.runners.cuda.kernels.detours import ACTIVATIONS, ALIGNMENT, FIELDS

_SLOTS, _PLACES = 64, 256  # what a table has room for at first
_ADDRESSES, _RANKS = 4, 4  # a record begins with so many addresses, then comes the number of ranks
_ABSENT = -1  # an offset that leads nowhere


@dataclass(frozen=True)
class DetourSite:
    """Where detours of one kind sit. A Vector reads nothing; `turn` counts one adapter's detours with the same taps."""

    tap: Tap  # what is changed
    reads: tuple[Tap, ...]
    turn: int = 0


DetourShape = frozenset[tuple[DetourSite, int]]  # where an adapter has detours, and of how many ranks (0: a Vector)


@dataclass(frozen=True)
class PackedAdapter:
    """An adapter on the device. `records` [places, FIELDS] are its rows of the table, in the order of `places`."""

    memory: Tensor
    places: tuple[DetourSite, ...]
    records: np.ndarray
    arrived: torch.cuda.Event | None  # None: it is there already

    @property
    def bytes(self) -> int:
        return self.memory.nbytes

    @property
    def shape(self) -> DetourShape:
        return frozenset(zip(self.places, self.records[:, _RANKS].tolist(), strict=True))


@dataclass(frozen=True)
class TableEntry:
    """A prepared adapter and its slot; 0, the bare base's, where it has no detours."""

    memory: Tensor
    shape: DetourShape
    slot: int


class AdapterTable:
    """The resident adapters. `prepare` may be called by any thread, the rest by the one that runs the base."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._dtype, self._device = dtype, device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._numbers: dict[DetourSite, int] = {}
        self._residents: dict[str, TableEntry] = {}
        self._free: list[int] = []
        self._rows = np.zeros((0, 0, FIELDS), np.int64)
        self._grow(_SLOTS, _PLACES)

    def prepare(self, forms: Sequence[Form]) -> PackedAdapter:
        """Detours (LowRank, Vector) brought to the device; on a GPU they may arrive after this has returned."""
        staging, places, records = _pack(forms, self._dtype, self._device)
        if self._copies is None:
            memory, arrived = staging, None
        else:
            with torch.cuda.stream(self._copies):
                memory = staging.to(self._device, non_blocking=True)
                arrived = self._copies.record_event()
        addresses = records[:, :_ADDRESSES]
        addresses[:] = np.where(addresses == _ABSENT, 0, addresses + memory.data_ptr())
        return PackedAdapter(memory, places, records, arrived)

    def add(self, digest: str, prepared: PackedAdapter) -> None:
        """Give an adapter a slot. The stream of the steps waits for its matrices, nobody else does."""
        if prepared.arrived is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(prepared.arrived)
            prepared.memory.record_stream(stream)  # freed memory is not given away before the last step has read it
        alike = (resident.shape for resident in self._residents.values() if resident.shape == prepared.shape)
        shape = next(alike, prepared.shape)  # one object for all that are equal, so that comparing them is quick
        self._residents[digest] = TableEntry(prepared.memory, shape, self._place(prepared) if shape else 0)

    def remove(self, digest: str) -> None:
        """Forget an adapter. No step names its slot until another adapter has it."""
        gone = self._residents.pop(digest)
        if gone.slot:
            self._free.append(gone.slot)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._residents)

    def slot(self, digest: str) -> int:
        return self._residents[digest].slot

    def shapes(self, digests: Sequence[str] | None = None) -> frozenset[DetourShape]:
        """The shapes of some adapters, or of all."""
        wanted = self._residents.values() if digests is None else [self._residents[digest] for digest in digests]
        return frozenset(resident.shape for resident in wanted if resident.shape)

    def number(self, place: DetourSite) -> int:
        """The place's column in the table."""
        return self._numbers[place]

    def _place(self, prepared: PackedAdapter) -> int:
        for place in prepared.places:
            self._numbers.setdefault(place, len(self._numbers))
        slots, places, _ = self._rows.shape
        if not self._free or len(self._numbers) > places:
            more = places
            while more < len(self._numbers):
                more *= 2
            self._grow(slots if self._free else 2 * slots, more)
        slot = self._free.pop()
        self._rows[slot] = 0
        self._rows[slot, [self._numbers[place] for place in prepared.places]] = prepared.records
        row = torch.from_numpy(self._rows[slot])
        self.table[slot].copy_(row.pin_memory() if self._copies else row, non_blocking=True)
        return slot

    def _grow(self, slots: int, places: int) -> None:
        """A larger table, elsewhere: what was recorded with the old one is of no use any more."""
        old = self._rows
        self._rows = np.zeros((slots, places, FIELDS), np.int64)
        self._rows[: old.shape[0], : old.shape[1]] = old
        self._free = [*range(slots - 1, max(0, old.shape[0] - 1), -1), *self._free]
        self.table = torch.from_numpy(self._rows).to(self._device, copy=True)


def _pack(
    forms: Sequence[Form], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, tuple[DetourSite, ...], np.ndarray]:
    """All tensors one after another in (pinned) host memory, the places, and their records with offsets for addresses."""
    step = ALIGNMENT // dtype.itemsize  # a tensor begins at a multiple of so many numbers
    turns: Counter[tuple[Tap, tuple[Tap, ...]]] = Counter()
    places, records, tensors, end = [], [], [], 0
    for form in forms:
        tap, reads, parts, numbers = _describe(form)
        places.append(DetourSite(tap, reads, turns[tap, reads]))
        turns[tap, reads] += 1
        offsets = []
        for part in parts:
            offsets.append(_ABSENT if part is None else end * dtype.itemsize)
            if part is not None:
                tensors.append((end, part))
                end += -(-part.numel() // step) * step
        records.append([*offsets, *numbers])
    staging = torch.empty(end, dtype=dtype, pin_memory=device.type == "cuda")
    for start, part in tensors:
        staging[start : start + part.numel()].view(part.shape).copy_(part)
    return staging, tuple(places), np.array(records, np.int64).reshape(-1, FIELDS)


def _describe(form: Form) -> tuple[Tap, tuple[Tap, ...], tuple[Tensor | None, ...], tuple[int, int]]:
    """The tap it changes, those it reads, its tensors and its numbers in the order of a record."""
    if isinstance(form, Vector):
        return form.tap, (), (form.scale, form.bias, None, None), (0, 0)
    if not isinstance(form, LowRank):
        raise TypeError(f"{type(form).__name__} is no detour at a tap")
    b = None if form.b is None else form.b * form.scale
    tensors = (form.A, form.a, form.B * form.scale, b)
    return form.adds_to, form.reads, tensors, (form.A.shape[0], ACTIVATIONS.index(form.activation))
