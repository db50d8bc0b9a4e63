"""Replicas that compute step by step, without the steps: only what changes a step's rows is an event.

A replica's requests all make one token a step; a request joins at the end of the step that is under way, with its whole prompt
in its first step. So the ends of steps follow from when the rows last changed. An adapter that is not in memory is loaded, one
after another in each replica, and its requests wait.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from benchmarks.lib.scale.memory import Memory
from benchmarks.lib.scale.policies import Asked, Rule, World
from benchmarks.lib.scale.trace import Failure, Trace
from benchmarks.lib.scale.work import Work

BACKOFF_S, MOST_BACKOFF_S = 0.025, 0.5  # Serve's, doubled each time, after a first attempt anew at once


@dataclass(frozen=True)
class Setting:
    """`limit`: requests at a replica; `room`: bytes of adapters in one. `most`: their number instead, where a rule counts.

    `hop`: seconds that a request takes from the router to a replica; `restart`: until one that ended is there again, empty.
    """

    replicas: int
    limit: int
    room: int
    most: int | None = None
    hop: float = 0.0
    restart: float = 30.0


@dataclass
class Counts:
    """What came of the requests. `waits`: seconds from a request's arrival to its first step, by arrival; NaN: never."""

    waits: NDArray[np.float64]
    hits: int = 0
    asked: int = 0  # at a replica
    loads: int = 0
    lost: int = 0  # with the replica that computed them
    done: int = 0


@dataclass(eq=False)
class Replica:
    """`steps`: those that ended by `since`, when its rows last changed; `first`, `later`: seconds of those after that."""

    number: int
    memory: Memory
    steps: int = 0
    since: float = 0.0
    first: float = 0.0
    later: float = 0.0
    rows: list[tuple[int, int, Asked]] = field(default_factory=list)  # by the step at whose end they are done
    ready: list[Asked] = field(default_factory=list)  # for the next step
    stall: float = 0.0  # what loads take from it
    turn: int = 0  # of the events of its steps only the last holds
    turn_at: float = math.inf
    wanted: deque[int] = field(default_factory=deque)  # adapters, in the order in which they are to be loaded
    waiting: dict[int, list[Asked]] = field(default_factory=dict)
    loading: bool = False
    life: int = 0

    def boundary(self, now: float) -> float:
        """When the step that is under way ends; now, where there is none."""
        if not self.rows:
            return now
        past = now - self.since - self.first
        return self.since + self.first + max(0, math.ceil(past / self.later - 1e-9)) * self.later

    def all(self) -> list[Asked]:
        return (
            [asked for _, _, asked in self.rows] + self.ready + [one for some in self.waiting.values() for one in some]
        )


def adapters_of(work: Work, kinds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bytes, and seconds to load, of each adapter, by the kind that it is of."""
    return np.array([kind.size for kind in work.kinds])[kinds], np.array([kind.load for kind in work.kinds])[kinds]


class Simulation:
    """One rule's run through a trace. `kinds`: of each adapter, a place in `work.kinds`."""

    def __init__(
        self,
        setting: Setting,
        work: Work,
        kinds: NDArray[np.int64],
        rule: Callable[[World], Rule],
        seed: int = 0,
    ) -> None:
        self.setting, self.work = setting, work
        self.sizes, self.load_s = adapters_of(work, kinds)
        self.world = World(setting.limit, [setting.room] * setting.replicas, self.sizes, random.Random(seed))
        self.rule = rule(self.world)
        self.replicas = [Replica(number, self._memory()) for number in range(setting.replicas)]
        self.step_s = [0.0] + [work.step(rows) for rows in range(1, setting.limit + 1)]
        self.counts = Counts(np.empty(0))
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = count()

    def warm(self, trace: Trace, under_way: int) -> None:
        """Fill memories as requests would, each under way until so many more have come; nothing takes time."""
        open_: deque[int] = deque()
        for number, adapter in enumerate(trace.adapter):
            asked = Asked(number, int(adapter), 0.0, int(trace.prompt[number]), int(trace.new[number]))
            place = next((one for one in self.rule.choose(asked, 0.0) if self._has_place(one)), None)
            if place is None:
                place = int(np.argmin(self.world.loads))
            self.rule.routed(asked, place)
            self.world.loads[place] += 1
            open_.append(place)
            replica = self.replicas[place]
            if not replica.memory.touch(asked.adapter):
                left = replica.memory.bring(asked.adapter, int(self.sizes[asked.adapter])) or ()
                for gone in left:
                    self.rule.told(place, gone, False)
                self.rule.told(place, asked.adapter, True)
            if len(open_) > under_way:
                self.world.loads[open_.popleft()] -= 1
        for place in open_:
            self.world.loads[place] -= 1

    def run(self, trace: Trace, failures: tuple[Failure, ...] = ()) -> Counts:
        """Requests until the last has come; those that then wait have waited so long."""
        self.counts = Counts(np.full(len(trace), np.nan))
        for failure in failures:
            self._at(failure.at, self._fail, failure.count)
        for number, at in enumerate(trace.at):
            self._until(float(at))
            asked = Asked(
                number, int(trace.adapter[number]), float(at), int(trace.prompt[number]), int(trace.new[number])
            )
            self._route(asked)
        self._until(float(trace.at[-1]))
        never = np.isnan(self.counts.waits)
        self.counts.waits[never] = trace.at[-1] - trace.at[never]
        return self.counts

    # Events

    def _at(self, when: float, what: Callable[..., None], *about: object) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what, about))

    def _until(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, what, about = heapq.heappop(self._events)
            what(*about)
        self.now = end

    # The router

    def _has_place(self, replica: int) -> bool:
        return bool(self.world.loads[replica] < self.setting.limit)

    def _route(self, asked: Asked) -> None:
        for one in self.rule.choose(asked, self.now):
            if self._has_place(one):
                self.world.loads[one] += 1
                self.rule.routed(asked, one)
                replica = self.replicas[one]
                self._at(self.now + self.setting.hop, self._arrive, replica, replica.life, asked)
                return
        asked.attempts += 1
        backoff = 0.0 if asked.attempts == 1 else BACKOFF_S * 2 ** min(asked.attempts - 2, 10)
        self._at(self.now + min(backoff, MOST_BACKOFF_S), self._route, asked)

    def _tell(self, replica: Replica, life: int, adapter: int, has: bool) -> None:
        if replica.life == life:
            self.rule.told(replica.number, adapter, has)

    # A replica

    def _memory(self) -> Memory:
        return Memory(self.setting.room, self.setting.most)

    def _arrive(self, replica: Replica, life: int, asked: Asked) -> None:
        if replica.life != life:
            self._route(asked)
            return
        self.counts.asked += 1
        replica.memory.use(asked.adapter)
        if asked.adapter in replica.waiting:
            replica.waiting[asked.adapter].append(asked)
        elif replica.memory.touch(asked.adapter):
            self.counts.hits += 1
            self._join(replica, [asked])
        else:
            replica.waiting[asked.adapter] = [asked]
            replica.wanted.append(asked.adapter)
            self._load_next(replica)

    def _load_next(self, replica: Replica) -> None:
        if replica.loading or not replica.wanted:
            return
        adapter = replica.wanted[0]
        left = replica.memory.bring(adapter, int(self.sizes[adapter]))
        if left is None:
            return  # until a request has ended
        replica.wanted.popleft()
        replica.loading = True
        for gone in left:
            self._say(replica, gone, False)
        self._say(replica, adapter, True)
        self._at(self.now + float(self.load_s[adapter]), self._loaded, replica, replica.life, adapter)

    def _say(self, replica: Replica, adapter: int, has: bool) -> None:
        if math.isfinite(self.rule.lag):
            self._at(self.now + self.rule.lag, self._tell, replica, replica.life, adapter, has)

    def _loaded(self, replica: Replica, life: int, adapter: int) -> None:
        if replica.life != life:
            return
        self.counts.loads += 1
        replica.loading = False
        replica.stall += self.work.load_work
        self._join(replica, replica.waiting.pop(adapter))
        self._load_next(replica)

    def _join(self, replica: Replica, some: list[Asked]) -> None:
        replica.ready += some
        self._turn_at(replica, replica.boundary(self.now))

    def _turn_at(self, replica: Replica, when: float) -> None:
        if when < replica.turn_at:
            replica.turn += 1
            replica.turn_at = when
            self._at(when, self._turn, replica, replica.life, replica.turn)

    def _turn(self, replica: Replica, life: int, turn: int) -> None:
        """A step has ended after which its rows change."""
        if replica.life != life or replica.turn != turn:
            return
        replica.turn_at = math.inf
        if replica.rows:
            replica.steps += 1 + round((self.now - replica.since - replica.first) / replica.later)
        self._finish(replica)
        prompts = 0
        for asked in replica.ready:
            self.counts.waits[asked.number] = self.now - asked.at
            heapq.heappush(replica.rows, (replica.steps + asked.new, asked.number, asked))
            prompts += asked.prompt
        replica.ready = []
        if replica.rows:
            replica.since, replica.later = self.now, self.step_s[len(replica.rows)]
            replica.first = replica.later + prompts * self.work.prompt_token + replica.stall
            replica.stall = 0.0
            left = replica.rows[0][0] - replica.steps - 1
            self._turn_at(replica, self.now + replica.first + left * replica.later)
        self._load_next(replica)

    def _finish(self, replica: Replica) -> None:
        while replica.rows and replica.rows[0][0] <= replica.steps:
            _, _, asked = heapq.heappop(replica.rows)
            replica.memory.release(asked.adapter)
            self.world.loads[replica.number] -= 1
            self.counts.done += 1

    # Failures

    def _fail(self, number: int) -> None:
        for place in self.world.random.sample(self.world.alive, number):
            replica = self.replicas[place]
            computed, others = [asked for _, _, asked in replica.rows], replica.all()[len(replica.rows) :]
            self.counts.lost += len(computed)
            self.world.loads[place] = math.inf
            self.world.alive.remove(place)
            self.replicas[place] = Replica(place, self._memory(), life=replica.life + 1)
            replica.life = -1
            self._at(self.now + self.setting.restart, self._come_back, place)
            for asked in others:
                self._at(self.now, self._route, asked)
        self.rule.changed()

    def _come_back(self, place: int) -> None:
        self.world.loads[place] = 0
        self.world.alive = sorted([*self.world.alive, place])
        self.rule.changed()
