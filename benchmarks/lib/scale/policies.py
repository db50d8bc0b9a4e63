"""Rules that pick a replica for a request: graft's own, and those it is compared with.

A rule sees what a router sees: how many requests it has sent where, and what replicas have told it, which is a little old.
`choose` names replicas in the order in which to try them; where none of them has a place, the router waits and asks again.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graft.server.scale.placement import BOUND, Bound, Fleet

MATCHING_S = 1.0  # RAY_SERVE_MULTIPLEXED_MODEL_ID_MATCHING_TIMEOUT_S


@dataclass(eq=False)
class Asked:
    """A request on its way. `attempts`, `since`: of finding it a replica."""

    number: int
    adapter: int
    at: float
    prompt: int
    new: int
    attempts: int = 0
    since: float | None = None
    tried_fewest: bool = False


@dataclass(eq=False)
class World:
    """What routers see. `loads`: requests at each replica; infinite where it is gone."""

    limit: int
    rooms: Sequence[int]
    sizes: NDArray[np.int64]  # of adapters
    random: random.Random
    loads: NDArray[np.float64] = field(init=False)
    alive: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.loads = np.zeros(len(self.rooms))
        self.alive = list(range(len(self.rooms)))


class Rule(Protocol):
    """`told(replica, adapter, has)`: a replica has, or no longer has, an adapter. `lag`: seconds until that is known."""

    lag: float
    world: World

    def choose(self, asked: Asked, now: float) -> Iterable[int]: ...

    def routed(self, asked: Asked, replica: int) -> None: ...

    def told(self, replica: int, adapter: int, has: bool) -> None: ...

    def changed(self) -> None:
        """Replicas have gone or come back."""


class Random:
    """Any."""

    lag = float("inf")

    def __init__(self, world: World) -> None:
        self.world = world

    def choose(self, asked: Asked, now: float) -> Iterable[int]:
        return (self.world.random.choice(self.world.alive),)

    def routed(self, asked: Asked, replica: int) -> None:
        pass

    def told(self, replica: int, adapter: int, has: bool) -> None:
        pass

    def changed(self) -> None:
        pass


class LeastLoaded(Random):
    """The one with the fewest requests; of equals any."""

    def choose(self, asked: Asked, now: float) -> Iterable[int]:
        least = np.flatnonzero(self.world.loads == self.world.loads.min())
        return (int(least[self.world.random.randrange(len(least))]),)


class Multiplexing(Random):
    """Ray Serve's (2.60, apply_multiplex_routing and PowerOfTwoChoicesRequestRouter): for a second or two those that hold
    the model, at the first attempt, or those with the fewest; then those with the fewest once, then all. Of each, two at random,
    the one with the shorter queue."""

    lag = 0.15  # models are pushed each 0.1 s, and broadcast

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.holders: defaultdict[int, set[int]] = defaultdict(set)
        self.counts = np.zeros(len(world.rooms))
        self.fallen_back: set[int] = set()

    def choose(self, asked: Asked, now: float) -> Iterable[int]:
        candidates = list(self._candidates(asked, now))
        two = self.world.random.sample(candidates, min(2, len(candidates)))
        return sorted(two, key=lambda replica: self.world.loads[replica])

    def _candidates(self, asked: Asked, now: float) -> Iterable[int]:
        first = asked.since is None
        asked.since = now if asked.since is None else asked.since
        if now - asked.since < self.world.random.uniform(MATCHING_S, 2 * MATCHING_S):
            holders = self.holders[asked.adapter]
            if (not holders and asked.adapter not in self.fallen_back) or not first:
                self.fallen_back.add(asked.adapter)
                return self._fewest()
            if holders:
                self.fallen_back.discard(asked.adapter)
            return holders
        if not asked.tried_fewest:
            asked.tried_fewest = True
            return self._fewest()
        return self.world.alive

    def _fewest(self) -> list[int]:
        counts = np.where(np.isfinite(self.world.loads), self.counts, np.inf)
        return [int(one) for one in np.flatnonzero(counts == counts.min())]

    def told(self, replica: int, adapter: int, has: bool) -> None:
        held = self.holders[adapter]
        if has and replica not in held and np.isfinite(self.world.loads[replica]):
            held.add(replica)
            self.counts[replica] += 1
        elif not has and replica in held:
            held.remove(replica)
            self.counts[replica] -= 1

    def changed(self) -> None:
        for adapter, held in self.holders.items():
            for gone in [one for one in held if not np.isfinite(self.world.loads[one])]:
                self.told(gone, adapter, False)


class Affinity(Random):
    """Ray Serve LLM's PrefixCacheAffinityRouter, where each adapter's prompts begin alike: who has had such a prompt before,
    of several the one with the shortest queue; otherwise who has had the fewest characters. It forgets nothing (do_eviction is
    off). Where loads differ by more than `imbalanced`, two at random, the shorter queue."""

    def __init__(self, world: World, imbalanced: float = float("inf")) -> None:
        super().__init__(world)
        self.imbalanced = imbalanced
        self.seen: defaultdict[int, set[int]] = defaultdict(set)
        self.sizes = np.zeros(len(world.rooms))

    def choose(self, asked: Asked, now: float) -> Iterable[int]:
        loads = self.world.loads
        here = loads[self.world.alive]
        if here.max() - here.min() > self.imbalanced:
            return sorted(self.world.random.sample(self.world.alive, 2), key=lambda replica: loads[replica])
        if matched := self.seen[asked.adapter]:
            return sorted(matched, key=lambda replica: loads[replica])
        return (int(np.argmin(np.where(np.isfinite(loads), self.sizes, np.inf))),)

    def routed(self, asked: Asked, replica: int) -> None:
        self.seen[asked.adapter].add(replica)
        self.sizes[replica] += asked.prompt

    def changed(self) -> None:
        for seen in self.seen.values():
            seen.difference_update([one for one in seen if not np.isfinite(self.world.loads[one])])


class Placement(Random):
    """graft's: server/scale/placement.py itself."""

    lag = 1.0  # replicas report once a second

    def __init__(self, world: World, bound: Bound = BOUND) -> None:
        super().__init__(world)
        self.bound = bound
        self.holders: defaultdict[int, set[int]] = defaultdict(set)
        self.changed()

    def changed(self) -> None:
        alive, world = self.world.alive, self.world
        self.places = {replica: place for place, replica in enumerate(alive)}
        ids = [f"replica-{one}" for one in alive]
        self.fleet = Fleet(ids, [world.limit] * len(alive), [world.rooms[one] for one in alive])

    def choose(self, asked: Asked, now: float) -> Iterable[int]:
        alive, places = self.world.alive, self.places
        holders = [places[one] for one in self.holders[asked.adapter] if one in places]
        size = int(self.world.sizes[asked.adapter])
        order = self.fleet.preferred(
            f"adapter-{asked.adapter}", self.world.loads[alive], holders, size=size, bound=self.bound
        )
        return (alive[place] for place in order)

    def routed(self, asked: Asked, replica: int) -> None:
        self.holders[asked.adapter].add(replica)  # it will have it

    def told(self, replica: int, adapter: int, has: bool) -> None:
        (self.holders[adapter].add if has else self.holders[adapter].discard)(replica)


RULES: dict[str, Callable[[World], Rule]] = {
    "graft": Placement,
    "random": Random,
    "least loaded": LeastLoaded,
    "Serve's multiplexing": Multiplexing,
    "prefix affinity": Affinity,
}
