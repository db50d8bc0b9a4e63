"""Real Ray Serve replicas whose steps sleep as long as they were measured to take: what the simulator is held against.

Rows, steps, memory and loads go by the rules of simulator.py, in real time; requests, routers, queues and what replicas report are
Ray Serve's. A step begins when the one before was due to end, so that waking up late adds nothing up.
"""

import asyncio
import itertools
import os
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from benchmarks.lib.harness import ROOT
from benchmarks.lib.scale.memory import Memory
from benchmarks.lib.scale.policies import RULES, Asked, Rule, World
from benchmarks.lib.scale.simulator import Counts, Setting
from benchmarks.lib.scale.trace import Trace
from benchmarks.lib.scale.work import Work

REPORT_S = 1.0
_RUNS = itertools.count()
MULTIPLEXING = "Serve's multiplexing"  # by Serve's own code, where the simulator has a copy of its rule


@dataclass(frozen=True)
class Adapters:
    """Bytes, and seconds to load, of each."""

    sizes: NDArray[np.int64]
    loads: NDArray[np.float64]


@dataclass(eq=False)
class Row:
    """A request in an engine."""

    prompt: int
    left: int
    began: float = 0.0
    done: "asyncio.Future[None]" = field(default_factory=asyncio.Future)


class Steps:
    """The engine of one replica. `stall`: seconds that loads take from its next step."""

    def __init__(self, work: Work) -> None:
        self.stall = 0.0
        self._work = work
        self._rows: list[Row] = []
        self._ready: list[Row] = []
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def compute(self, prompt: int, new: int) -> float:
        """Until its last step has ended. Returns when its first began (time.time())."""
        row = Row(prompt, new)
        self._ready.append(row)
        self._wake.set()
        await row.done
        return row.began

    async def _run(self) -> None:
        due = time.time()
        while True:
            if not self._rows and not self._ready:
                self._wake.clear()
                await self._wake.wait()
                due = max(due, time.time())
            for row in self._ready:
                row.began = due
            self._rows += self._ready
            prompts = sum(row.prompt for row in self._ready)
            self._ready = []
            due += self._work.step(len(self._rows)) + prompts * self._work.prompt_token + self.stall
            self.stall = 0.0
            await asyncio.sleep(max(0.0, due - time.time()))
            for row in self._rows:
                row.left -= 1
                if not row.left:
                    row.done.set_result(None)
            self._rows = [row for row in self._rows if row.left]


class Loads:
    """Adapters come in one after another, each when there is room."""

    def __init__(self, memory: Memory, adapters: Adapters, steps: Steps, work: Work) -> None:
        self.memory = memory
        self._adapters, self._steps, self._work = adapters, steps, work
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()

    async def get(self, adapter: int) -> str:
        """Wait until it is there. Returns which of OUTCOMES it was."""
        if adapter in self._under_way:
            await self._under_way[adapter]
            return "waited"
        if self.memory.touch(adapter):
            return "hit"
        self._under_way[adapter] = asyncio.create_task(self._load(adapter))
        await self._under_way[adapter]
        return "load"

    def release(self, adapter: int) -> None:
        self.memory.release(adapter)
        self._released.set()

    async def _load(self, adapter: int) -> None:
        async with self._turn:
            while self.memory.bring(adapter, int(self._adapters.sizes[adapter])) is None:
                self._released.clear()
                await self._released.wait()
            await asyncio.sleep(float(self._adapters.loads[adapter]))
        self._steps.stall += self._work.load_work
        del self._under_way[adapter]


class Sleeper:
    """A replica. A call's answer: seconds from when it was sent to its arrival and to its first step, and an outcome.

    A call for no adapter (-1) is answered at once.
    """

    def __init__(self, work: Work, adapters: Adapters, setting: Setting) -> None:
        self._given = work, adapters, setting
        self._parts: tuple[Steps, Loads] | None = None

    async def __call__(self, adapter: int, prompt: int, new: int, sent: float) -> tuple[float, float, str]:
        arrived = time.time() - sent
        if adapter < 0:
            return arrived, arrived, ""
        steps, loads = self._made()
        loads.memory.use(adapter)
        outcome = await loads.get(adapter)
        began = await steps.compute(prompt, new)
        loads.release(adapter)
        return arrived, began - sent, outcome

    def record_routing_stats(self) -> dict[str, Any]:
        return {"held": list(self._parts[1].memory.held) if self._parts else []}

    def _made(self) -> tuple[Steps, Loads]:
        """With the first request: they need the loop."""
        if self._parts is None:
            work, adapters, setting = self._given
            steps = Steps(work)
            self._parts = steps, Loads(Memory(setting.room, setting.most), adapters, steps, work)
        return self._parts


def multiplexed(most: int) -> type:
    """A replica whose adapters Serve keeps: the least recently used of so many leaves, in use or not."""

    class Multiplexed(Sleeper):
        async def __call__(self, adapter: int, prompt: int, new: int, sent: float) -> tuple[float, float, str]:
            arrived = time.time()
            if adapter < 0:
                return arrived - sent, arrived - sent, ""
            steps, _ = self._made()
            made: list[str] = await self.model(str(adapter))
            outcome = made.pop() if made else "hit"
            began = await steps.compute(prompt, new)
            return arrived - sent, began - sent, outcome

        @serve.multiplexed(max_num_models_per_replica=most)  # type: ignore[untyped-decorator]
        async def model(self, name: str) -> list[str]:
            """Whoever has waited for it takes an outcome from what it returns."""
            work, adapters, _ = self._given
            await asyncio.sleep(float(adapters.loads[int(name)]))
            self._made()[0].stall += work.load_work
            return ["load"]

    return Multiplexed


class RuleRouter(RequestRouter):  # type: ignore[misc]  # ray has no types of its own here
    """Serve's router by a rule of policies.py, which sees what Serve tells it."""

    def initialize_state(self, rule: str, limit: int, room: int, sizes: Sequence[int]) -> None:
        self._given = rule, limit, room, np.array(sizes)
        self._rule: Rule | None = None
        self._order: list[Any] = []
        self._told: defaultdict[int, set[int]] = defaultdict(set)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        order = sorted((one.replica_id for one in replicas), key=str)
        if order != self._order:
            name, limit, room, sizes = self._given
            self._order, self._told = order, defaultdict(set)
            self._rule = RULES[name](World(limit, [room] * len(order), sizes, random.Random(0))) if order else None
        for place, one in enumerate(sorted(replicas, key=lambda replica: str(replica.replica_id))):
            self._tell(place, set(one.routing_stats.get("held", ())))

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None or self._rule is None or pending_request.args[0] < 0:
            return [candidate_replicas]  # a call for no adapter is none of the rule's turns
        pending_request.routing_context.should_backoff = True
        adapter, prompt, new, sent = pending_request.args
        lengths = [self.replica_queue_len_cache.get(one) or 0 for one in self._order]
        self._rule.world.loads[:] = lengths
        by_id = {one.replica_id: one for one in candidate_replicas}
        places = self._rule.choose(Asked(0, adapter, sent, prompt, new), time.time())
        return [[by_id[self._order[place]]] for place in places if self._order[place] in by_id]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: Any, result: Any) -> None:
        adapter, prompt, new, sent = pending_request.args
        if self._rule is not None and adapter >= 0:
            self._rule.routed(Asked(0, adapter, sent, prompt, new), self._order.index(replica_id))

    def _tell(self, place: int, held: set[int]) -> None:
        assert self._rule is not None
        for adapter in self._told[place] ^ held:
            self._rule.told(place, adapter, adapter in held)
        self._told[place] = held


@dataclass(frozen=True)
class Played:
    """What Ray did with a trace. `hop`: median seconds from the router to an idle replica."""

    counts: Counts
    hop: float


def play(rule: str, work: Work, adapters: Adapters, setting: Setting, trace: Trace) -> Played:
    """A trace in real time on replicas of their own, of the Ray that runs."""
    name = f"scale-{next(_RUNS)}"  # this process keeps the router of a name
    handle = serve.run(_application(rule, work, adapters, setting), name=name, route_prefix=None)
    try:
        return asyncio.run(_play(handle, trace, named=rule == MULTIPLEXING))
    finally:
        serve.delete(name)


def start_ray() -> None:
    """One node, whose workers find this repository's modules."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")


def _application(rule: str, work: Work, adapters: Adapters, setting: Setting) -> Any:
    options: dict[str, Any] = {
        "num_replicas": setting.replicas,
        "max_ongoing_requests": setting.limit,
        "ray_actor_options": {"num_cpus": 0},
        "graceful_shutdown_timeout_s": 1,
    }
    if rule == MULTIPLEXING:
        assert setting.most is not None
        return serve.deployment(multiplexed(setting.most), name="replica", **options).bind(work, adapters, setting)
    known = {"rule": rule, "limit": setting.limit, "room": setting.room, "sizes": [int(one) for one in adapters.sizes]}
    config = RequestRouterConfig(
        request_router_class=RuleRouter, request_router_kwargs=known, request_routing_stats_period_s=REPORT_S
    )
    return serve.deployment(Sleeper, name="replica", request_router_config=config, **options).bind(
        work, adapters, setting
    )


async def _play(handle: Any, trace: Trace, *, named: bool) -> Played:
    hops = [(await handle.remote(-1, 0, 0, time.time()))[0] for _ in range(50)]
    waits, outcomes = np.full(len(trace), np.nan), [""] * len(trace)

    async def ask(number: int) -> None:
        adapter = int(trace.adapter[number])
        asked = handle.options(multiplexed_model_id=str(adapter)) if named else handle
        answer = await asked.remote(adapter, int(trace.prompt[number]), int(trace.new[number]), time.time())
        _, waits[number], outcomes[number] = answer

    start, asking = time.time(), []
    for number, at in enumerate(trace.at):
        await asyncio.sleep(max(0.0, start + float(at) - time.time()))
        asking.append(asyncio.create_task(ask(number)))
    await asyncio.gather(*asking)
    counts = Counts(waits, outcomes.count("hit"), len(trace), outcomes.count("load"), 0, len(trace))
    return Played(counts, float(np.median(hops[10:])))
