"""Which replica answers a request: bounded-load rendezvous hashing over adapters' digests. Pure: torch-free, ray-free.

Each pair of an adapter and a replica has a score that anybody can compute, and the replicas by their scores are that
adapter's order (highest random weight; Thaler and Ravishankar 1998, "Using name-based mappings to increase hit rates"): who
comes or goes moves only what is then first on it, or was. Scores are weighted by room (Schindelhauer and Schomaker 2005,
"Weighted distributed hash tables"), so that adapters spread as the memory for them does. Nobody is given more than a bound,
C x its share of all that is under way (Mirrokni, Thorup and Zadimoghaddam 2018, "Consistent hashing with bounded loads"), so a
hot adapter overflows to the next in its order, which all that have it then share. The routers of a
deployment need not talk to each other: they know the same order.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Places = NDArray[np.intp]
_KEPT_ORDERS = 2048  # by each fleet: 8 KB each with 1,000 replicas


@dataclass(frozen=True)
class Replica:
    """One engine as a router sees it. `load`: its requests under way; `limit`: how many it computes at once, 1 or more.

    `resident`: bytes of each adapter in its memory, by digest; `room`: bytes that adapters may take there in all.
    """

    id: str
    load: int
    limit: int
    resident: Mapping[str, int]
    room: int


@dataclass(frozen=True)
class Bound:
    """How far from an even load adapters may pull the replicas, as shares of their limits.

    `c`: how many times its even share one may have, above 1: the papers' bound, and what they use. `quiet`: which share of
    its limit it may have in any case: rows of a step that would stay empty cost less than one more copy of an adapter.
    """

    c: float = 1.25
    quiet: float = 0.5

    def of(self, limits: Numbers, under_way: int) -> Numbers:
        """The most that each may have with one request more. One of them has less, unless all are full."""
        even = (under_way + 1) / limits.sum()
        allowed = self.c * even if even > 1 else min(1.0, max(self.quiet, self.c * even))
        return np.ceil(allowed * limits)


BOUND = Bound()


class Fleet:
    """Replicas that stay, as arrays: what they hold and do may change. `limits`, `rooms`: as those of a `Replica`."""

    def __init__(self, ids: Sequence[str], limits: Sequence[int], rooms: Sequence[int]) -> None:
        self.ids, self.limits, self.rooms = tuple(ids), np.array(limits, float), np.array(rooms, float)
        self._seeds = np.array([_seed(name) for name in ids], np.uint64)
        self._orders = lru_cache(_KEPT_ORDERS)(self._order)  # of the adapters that are asked for most

    def order(self, digest: str) -> Places:
        """An adapter's replicas, best first, by their places in `ids`: the same whoever asks, in any process."""
        return self._orders(digest)

    def _order(self, digest: str) -> Places:
        even = ((_mixed(self._seeds ^ np.uint64(_seed(digest))) >> np.uint64(11)) + 0.5) / 2.0**53
        return np.argsort(np.log(even) / np.maximum(self.rooms, 1.0), kind="stable")[::-1]

    def preferred(
        self, digest: str, loads: Numbers, holders: Collection[int], *, size: int = 0, bound: Bound = BOUND
    ) -> Places:
        """Where to send a request for this adapter, best first, by places in `ids`.

        First the holders (places of those that have it in memory) within the bound, the least loaded before others; then the rest
        within it, in the adapter's own order; then those beyond it, the least loaded first; last who has no room for its
        `size` in bytes (0: not known).
        """
        order = self.order(digest)
        busy, filled = (loads + 1 > bound.of(self.limits, int(loads.sum())))[order], (loads / self.limits)[order]
        holds = np.zeros(len(self.ids), bool)
        holds[list(holders)] = True
        holds = holds[order]
        too_small = (self.rooms[order] < size) & ~holds
        return order[np.lexsort((np.where(busy | holds, filled, 0.0), ~holds & ~busy, busy, too_small))]

    def least_loaded(self, loads: Numbers) -> Places:
        """Where to send a request for the bare base, which all hold, best first."""
        return np.argsort(loads / self.limits, kind="stable")


def preferred(replicas: Sequence[Replica], digest: str | None, *, size: int = 0, bound: Bound = BOUND) -> list[Replica]:
    """The replicas in the order in which to try them for a request. `digest`: of its adapter; None for the bare base.

    `size`: the adapter's bytes where they are known. The order depends on nothing but what is given, not on that of
    `replicas` either.
    """
    if not replicas:
        return []
    replicas = sorted(replicas, key=lambda replica: replica.id)
    fleet = _fleet(*zip(*((one.id, one.limit, one.room) for one in replicas), strict=True))
    loads = np.array([replica.load for replica in replicas], float)
    if digest is None:
        return [replicas[place] for place in fleet.least_loaded(loads)]
    holders = [place for place, replica in enumerate(replicas) if digest in replica.resident]
    return [replicas[place] for place in fleet.preferred(digest, loads, holders, size=size, bound=bound)]


@lru_cache(maxsize=8)
def _fleet(ids: tuple[str, ...], limits: tuple[int, ...], rooms: tuple[int, ...]) -> Fleet:
    return Fleet(ids, limits, rooms)


@lru_cache(maxsize=1 << 16)
def _seed(name: str) -> int:
    """64 bits of a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each word to another that looks drawn (a bijection: splitmix64's last steps, Steele, Lea and Flood 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
