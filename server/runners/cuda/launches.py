"""What a step on a GPU launches for its adapters: tap by tap, for the places where any of them has a detour.

A layout depends on the shapes of adapters, not on who they are: whoever fits into it can take part. Detours that read
the same rows share one shrink; the projections with one input (q, k and v; gate and up) read the same rows unless an
adapter changes what one of them gets.

Knows places and taps, and of the kernels only COLUMNS; no rows.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graft.hub.base.hook_points import Tap
from graft.hub.base.manifest import BaseSpec
from graft.server.runners.cuda.adapter_table import AdapterTable, DetourShape, DetourSite
from graft.server.runners.cuda.kernels.detours import COLUMNS

_KEPT = 16  # exact layouts
Read = tuple[Tap | None, tuple[Tap, ...]]  # what a shrink reads, after the tap where it reads its own


@dataclass(frozen=True, eq=False)
class Shrink:
    """One launch of the shrink: what it reads and, [G, 2] int64, a place's number and first rank for each column."""

    reads: tuple[Tap, ...]
    columns: Tensor


@dataclass(frozen=True)
class Expand:
    """One launch of the expand: a place's number, whose sums it takes, and from which column on."""

    place: int
    shrink: Shrink
    column: int


@dataclass(frozen=True)
class Site:
    """What happens at a tap: first its vectors, by number of place, then its expands."""

    vectors: tuple[int, ...] = ()
    expands: tuple[Expand, ...] = ()


@dataclass(frozen=True, eq=False)
class LaunchPlan:
    """`table`: the bank's, which the numbers of places belong to. `kept`: taps whose values are read later."""

    table: Tensor
    sites: Mapping[Tap, Site]
    kept: frozenset[Tap]
    widths: Mapping[DetourSite, int]  # columns of a place, 0 for a Vector's

    @property
    def taps(self) -> frozenset[Tap]:
        return self.kept | self.sites.keys()

    def has_room(self, shapes: Iterable[DetourShape]) -> bool:
        """Whether adapters of these shapes can take part."""
        return all(_columns(ranks) <= self.widths.get(place, -1) for shape in shapes for place, ranks in shape)


class Layouts:
    """The layouts of a bank's adapters, kept while they are of use."""

    def __init__(self, bank: AdapterTable, spec: BaseSpec):
        self._bank, self._spec = bank, spec
        self._exact: OrderedDict[frozenset[DetourShape], LaunchPlan] = OrderedDict()
        self._roomy: LaunchPlan | None = None
        self._fitting: frozenset[DetourShape] = frozenset()  # shapes known to fit into it

    def exact_plan(self, digests: Sequence[str]) -> LaunchPlan | None:
        """With room for these adapters and no more: for a step that is launched piece by piece. None: no detours."""
        shapes = self._bank.shapes(digests)
        if not shapes:
            return None
        layout = self._exact.pop(shapes, None)
        if layout is None or layout.table is not self._bank.table:
            layout = make_layout(self._bank, shapes, self._spec)
        self._exact[shapes] = layout
        if len(self._exact) > _KEPT:
            self._exact.popitem(last=False)
        return layout

    def roomy_plan(self, digests: Sequence[str]) -> LaunchPlan | None:
        """With room for these adapters: the same as before if it has, else one for all residents. None: no detours."""
        shapes = self._bank.shapes(digests)
        if not shapes:
            return None
        layout = self._roomy
        if (
            layout is None
            or layout.table is not self._bank.table
            or not (shapes <= self._fitting or layout.has_room(shapes))
        ):
            self._fitting = self._bank.shapes()
            self._roomy = make_layout(self._bank, self._fitting, self._spec)
        elif not shapes <= self._fitting:
            self._fitting = self._bank.shapes() & (self._fitting | shapes)
        return self._roomy


def make_layout(bank: AdapterTable, shapes: Iterable[DetourShape], spec: BaseSpec) -> LaunchPlan:
    """The layout with room for adapters of all these shapes, and no more."""
    widths: dict[DetourSite, int] = {}
    for shape in shapes:
        for place, ranks in shape:
            widths[place] = max(widths.get(place, 0), _columns(ranks))
    sources = _sources(spec, {place.tap for place in widths})
    groups: dict[Read, list[DetourSite]] = {}
    for place in sorted(widths, key=bank.number):
        if place.reads:
            groups.setdefault(_read(place, sources), []).append(place)
    expands = _expands(bank, groups, widths)
    vectors: dict[Tap, list[int]] = {}
    for place in widths:
        if not place.reads:
            vectors.setdefault(place.tap, []).append(bank.number(place))
    sites = {
        tap: Site(tuple(sorted(vectors.get(tap, ()))), tuple(expands.get(tap, ())))
        for tap in vectors.keys() | expands.keys()
    }
    kept = {tap for (_, reads), places in groups.items() for tap in reads if any(tap != place.tap for place in places)}
    return LaunchPlan(bank.table, sites, frozenset(kept), widths)


def _expands(
    bank: AdapterTable, groups: Mapping[Read, list[DetourSite]], widths: Mapping[DetourSite, int]
) -> dict[Tap, list[Expand]]:
    """The expands by tap. groups: what is read -> the places that do, which share a shrink."""
    columns = [
        (bank.number(place), i * COLUMNS)
        for places in groups.values()
        for place in places
        for i in range(widths[place])
    ]
    on_device = torch.tensor(columns, dtype=torch.int64).view(-1, 2).to(bank.table.device)  # one copy for all
    expands: dict[Tap, list[Expand]] = {}
    start = 0
    for (_, reads), places in groups.items():
        stop = start + sum(widths[place] for place in places)
        shrink = Shrink(reads, on_device[start:stop])
        first = 0
        for place in places:
            expands.setdefault(place.tap, []).append(Expand(bank.number(place), shrink, first))
            first += widths[place]
        start = stop
    return expands


def _columns(ranks: int) -> int:
    return -(-ranks // COLUMNS)


def _read(place: DetourSite, sources: Mapping[Tap, Tap]) -> Read:
    """What a place's shrink reads, after the tap where it is not yet what later taps read: its own."""
    return place.tap if place.tap in place.reads else None, tuple(sources.get(tap, tap) for tap in place.reads)


def _sources(spec: BaseSpec, changed: set[Tap]) -> dict[Tap, Tap]:
    """Input of a projection -> the input of an earlier one that holds the same rows, as no adapter changes either."""
    sources: dict[Tap, Tap] = {}
    for layer in range(spec.num_layers):
        for names in (spec.parts.queries, spec.parts.mlp_in):
            inputs = [Tap(spec.module(layer, name), "in") for name in names]
            same = [tap for tap in inputs if tap not in changed]
            sources |= {tap: same[0] for tap in same}
    return sources
