"""Whose turn it is, by start-time fair queueing: everybody gets shares of what is given out by weight, whatever is asked for.

Each key that has something to do has a start tag in a virtual time; the smallest is first. A turn moves the key's tag on by
its cost over its weight, and the virtual time by its share of that. Who comes anew begins at the present time: idleness
is not saved up, and what was used ahead of time stays owed. Every operation takes O(log n). Pure.
"""

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
_PROMISED = -(1 << 62)  # before every other tick
_SPARE_RANKS = 64  # kept beside those that somebody has, before they are sorted out
_SPARE_ENTRIES = 64  # of a heap beside those that hold, before it is made anew
_SPARE_DEBTS = 64  # kept beside those who are in, before settled ones are looked for


Tag = tuple[float, int]


class Order(Generic[Key]):
    """Keys by their tags, no two of which are equal: which is first takes O(log n), whatever comes and goes."""

    def __init__(self) -> None:
        self._tags: dict[Key, Tag] = {}
        self._heap: list[tuple[Tag, Key]] = []  # with entries of tags that hold no more

    def __len__(self) -> int:
        return len(self._tags)

    def __contains__(self, key: Key) -> bool:
        return key in self._tags

    def __getitem__(self, key: Key) -> Tag:
        return self._tags[key]

    def put(self, key: Key, tag: Tag) -> None:
        """It is in, with this tag from now on."""
        self._tags[key] = tag
        heappush(self._heap, (tag, key))
        if len(self._heap) > _SPARE_ENTRIES + 2 * len(self._tags):
            self._heap = [(tag, key) for key, tag in self._tags.items()]
            heapify(self._heap)

    def discard(self, key: Key) -> None:
        self._tags.pop(key, None)

    def first(self) -> Key:
        """Of the smallest tag. Somebody is in."""
        while True:
            tag, key = self._heap[0]
            if self._tags.get(key) == tag:
                return key
            heappop(self._heap)


class Turns(Generic[Key]):
    """Keys that have something to do, by whose turn it is. Of equal tags the one that came first."""

    def __init__(self) -> None:
        self._now = 0.0
        self._in: Order[Key] = Order()  # by start tags
        self._debts: dict[Key, float] = {}  # start tags of those who are out, as long as they are ahead of time
        self._ticks = count()

    def __len__(self) -> int:
        return len(self._in)

    def __contains__(self, key: Key) -> bool:
        return key in self._in

    def join(self, key: Key, *, promised: bool = False) -> None:
        """A key has something to do. `promised`: it was out of turn through no fault of its own: first of its equals."""
        if key not in self._in:
            tick = next(self._ticks)
            self._in.put(key, (max(self._now, self._debts.pop(key, 0.0)), tick + _PROMISED if promised else tick))

    def leave(self, key: Key) -> None:
        """A key has nothing to do, or can't do it now."""
        start, _ = self._in[key]
        self._in.discard(key)
        self._owe(key, start)

    def first(self) -> Key:
        """Whose turn it is. Somebody is in."""
        return self._in.first()

    def tag(self, key: Key) -> Tag:
        """By which keys that are in can be compared: the smallest is first. It stays until the key's turn, or until it leaves."""
        return self._in[key]

    def pay(self, key: Key, cost: float) -> None:
        """A key that is in has had a turn. cost: over its weight."""
        start, _ = self._in[key]
        # Somewhat slower than everybody's tag: who comes anew is soon first, and a stream of new ones holds nobody up.
        self._now = max(self._now, start) + cost / (len(self._in) + 1)
        self._in.put(key, (start + cost, next(self._ticks)))

    def _owe(self, key: Key, start: float) -> None:
        if start > self._now:
            self._debts[key] = start
        if len(self._debts) > _SPARE_DEBTS + 2 * len(self._in):
            self._debts = {key: start for key, start in self._debts.items() if start > self._now}


class RankedTurns(Generic[Key]):
    """The same of keys of several ranks: those of the lowest rank have their turns, and those of the others wait."""

    def __init__(self) -> None:
        self._turns: dict[int, Turns[Key]] = {}  # of ranks that somebody has who is in
        self._ranks: list[int] = []  # a heap, with ranks that nobody has any more

    def __bool__(self) -> bool:
        return bool(self._turns)

    def __contains__(self, ranked: tuple[int, Key]) -> bool:
        rank, key = ranked
        return rank in self._turns and key in self._turns[rank]

    def join(self, rank: int, key: Key, *, promised: bool = False) -> None:
        if rank not in self._turns:
            self._turns[rank] = Turns()
            heappush(self._ranks, rank)
            if len(self._ranks) > _SPARE_RANKS + 2 * len(self._turns):
                self._ranks = sorted(self._turns)
        self._turns[rank].join(key, promised=promised)

    def leave(self, rank: int, key: Key) -> None:
        """The last one of a rank takes its time along: whoever has the rank next begins anew."""
        self._turns[rank].leave(key)
        if not self._turns[rank]:
            del self._turns[rank]

    def first(self) -> tuple[int, Key]:
        """Whose turn it is, behind its rank. Somebody is in."""
        while self._ranks[0] not in self._turns:
            heappop(self._ranks)
        rank = self._ranks[0]
        return rank, self._turns[rank].first()

    def pay(self, rank: int, key: Key, cost: float) -> None:
        self._turns[rank].pay(key, cost)
