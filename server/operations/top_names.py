"""The names that are worth a label of their own in the numbers: those that are asked for most, so many at most. Torch-free.

Names come and go by the thousand, and whoever collects numbers keeps a series for each label for ever. Who is among the first changes
once a minute at most, so that labels don't change with every request either.
"""

import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)  # of an adapter, or of a key and an adapter

OTHER = "other"
RANK_S = 60.0
_COUNTED = (
    16  # times as many names as have labels are counted; of the rest it is not known how often they are asked for
)
_BETTER = 2  # times as often asked for: less is no reason to change labels


class TopNames(Generic[Name]):
    """`other`: the label of the rest. Not safe for many threads."""

    def __init__(self, most: int, other: Name, clock: Callable[[], float] = time.monotonic):
        self._most = most
        self._other = other
        self._clock = clock
        self._named: set[Name] = set()
        self._asked: Counter[Name] = Counter()
        self._ranked = clock()

    def label(self, name: Name) -> Name:
        """The name, or what the rest is called."""
        if name not in self._named:
            if len(self._named) >= self._most:
                return self._other
            self._named.add(name)
        return name

    def count(self, name: Name) -> None:
        """It has been asked for once more."""
        self._asked[name] += 1
        if len(self._asked) > self._most * _COUNTED:  # Misra and Gries: who is asked for often stays
            self._asked = Counter({name: count - 1 for name, count in self._asked.items() if count > 1})

    def rank(self) -> list[Name]:
        """Once a minute: the names whose labels others take from now on."""
        if self._clock() < self._ranked + RANK_S:
            return []
        self._ranked = self._clock()
        out = sorted(self._named, key=lambda name: self._asked[name])
        into = [name for name, _ in self._asked.most_common() if name not in self._named]
        swaps = [
            (old, new) for old, new in zip(out, into, strict=False) if self._asked[new] > _BETTER * self._asked[old]
        ]
        for old, new in swaps:
            self._named.remove(old)
            self._named.add(new)
        self._asked = Counter({name: count // 2 for name, count in self._asked.items() if count > 1})
        return [old for old, _ in swaps]
