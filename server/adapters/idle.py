"""Which residents could make room: least recently used first, those that nobody waits for before the others."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What a resident takes: bytes in the runner, blocks of the cache."""

    @property
    def bytes(self) -> int: ...

    @property
    def blocks(self) -> int: ...


One = TypeVar("One", bound=Sized)


@dataclass
class _Rank(Generic[One]):
    """By digest, in the order in which they became idle. `with_rows`: those of them that hold blocks."""

    all: OrderedDict[str, One] = field(default_factory=OrderedDict)
    with_rows: OrderedDict[str, One] = field(default_factory=OrderedDict)
    bytes: int = 0
    blocks: int = 0


class IdleAdapters(Generic[One]):
    """Sums are kept, so that whether there is room takes no search."""

    def __init__(self) -> None:
        self._ranks: tuple[_Rank[One], _Rank[One]] = (_Rank(), _Rank())  # that nobody waits for; that requests wait for
        self._rank_of: dict[str, _Rank[One]] = {}

    def put(self, digest: str, one: One, *, waited_for: bool) -> None:
        """It is idle now; where it was already of that rank it keeps its place."""
        rank = self._ranks[waited_for]
        if self._rank_of.get(digest) is rank:
            return
        self.discard(digest)
        self._rank_of[digest] = rank
        rank.all[digest] = one
        if one.blocks:
            rank.with_rows[digest] = one
        rank.bytes += one.bytes
        rank.blocks += one.blocks

    def discard(self, digest: str) -> None:
        """It is not idle, or no longer there."""
        rank = self._rank_of.pop(digest, None)
        if rank is not None:
            one = rank.all.pop(digest)
            rank.with_rows.pop(digest, None)
            rank.bytes -= one.bytes
            rank.blocks -= one.blocks

    def room(self, *, sparing: bool) -> tuple[int, int]:
        """Bytes and blocks that all of them take; `sparing`: without those that requests wait for."""
        ranks = self._ranks[: 1 if sparing else 2]
        return sum(rank.bytes for rank in ranks), sum(rank.blocks for rank in ranks)

    def first(self, *, sparing: bool) -> One:
        """What goes first. There is one."""
        return next(self._each(sparing, with_rows=False))[1]

    def __iter__(self) -> Iterator[One]:
        """In the order in which they go."""
        return (one for _, one in self._each(False, with_rows=False))

    def first_with_rows(self, *, sparing: bool, keep: str | None = None) -> One | None:
        """The first one but `keep` that holds cache blocks."""
        return next((one for digest, one in self._each(sparing, with_rows=True) if digest != keep), None)

    def _each(self, sparing: bool, *, with_rows: bool) -> Iterator[tuple[str, One]]:
        for rank in self._ranks[: 1 if sparing else 2]:
            yield from (rank.with_rows if with_rows else rank.all).items()
