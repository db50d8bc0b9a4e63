"""The device tier: which adapters are in the runner and have their virtual rows in the cache.

Bringing one in: its detours are prepared on a loader's thread, added to the runner between steps, its virtual rows written or run
once through the base, its proof made; then its requests may start. The least recently used idle adapter makes room. Where none is
idle, those who need room queue for it, and nobody else waits for them; whoever has waited for HOLD_BACK_S gets the room of adapters
whose requests, but those that run, are held back for it. All but `prepare` happens on the engine's thread.
"""

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from graft.hub.adapters.probe import Verdict
from graft.hub.adapters.serving_forms import CacheRows
from graft.hub.errors import GraftError
from graft.server.adapters.demand import Demand, Seeker
from graft.server.adapters.idle import IdleAdapters
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.readiness import VirtualRows
from graft.server.adapters.resident import AdapterWork, Resident, State
from graft.server.cache.blocks import BlockPool
from graft.server.cache.step import BLOCK_ROWS
from graft.server.errors import BrokenError, CapacityError, StateLostError, unless_error
from graft.server.fair_queue import FairQueue
from graft.server.runners.protocol import Prepared, Runner
from graft.server.used_last import UsedLast

log = logging.getLogger(__name__)

VIRTUAL_SHARE = 4  # at most 1/4 of the cache's blocks holds virtual rows, so that requests always find room
# After so many seconds of waiting for room an adapter gets that of others; and so long an adapter has its room for itself.
# Shorter, and adapters that share too little room would be brought in more than they serve; bringing in takes some 0.1 s.
HOLD_BACK_S = 2.0
_ASK_AGAIN_S = 0.05  # where nothing could be held back
MOST_PROVEN = 10_000  # adapters whose verdicts are at hand: others are proven again


class DeviceTier:
    """Used by the engine's thread alone."""

    def __init__(
        self,
        runner: Runner,
        blocks: BlockPool,
        work: AdapterWork,
        *,
        budget_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.budget_bytes = budget_bytes
        self.evictions = 0
        self.bytes = 0  # of all residents
        self.virtual_blocks = 0
        self._runner = runner
        self._blocks = blocks
        self._work = work
        self._pinned: set[str] = set()  # digests
        self._clock = clock
        self._proven: UsedLast[str, Verdict] = UsedLast(MOST_PROVEN)  # by digest
        self._residents: dict[str, Resident] = {}
        self._idle: IdleAdapters[Resident] = IdleAdapters()
        self._busy: dict[str, Resident] = {}  # the residents that are not idle
        self._demands: dict[str, Demand] = {}
        self._seekers: FairQueue[Seeker] = FairQueue()
        self._yielding: dict[str, Resident] = {}  # no request of them may start, so that they go
        self._served_next: Seeker | None = None  # for whom they yield
        self._ask_again = 0.0

    @property
    def pinned(self) -> frozenset[str]:
        """Digests of the adapters that stay."""
        return frozenset(self._pinned)

    def snapshot(self) -> list[Resident]:
        return list(self._residents.values())

    def check(self, loaded: Loaded) -> None:
        """Raises CapacityError for an adapter that could never come in."""
        if loaded.device_bytes > self.budget_bytes:
            raise CapacityError(
                f"This adapter takes {loaded.device_bytes} bytes, all adapters on the device together may take "
                f"{self.budget_bytes} (--adapter-device-bytes)."
            )
        if loaded.virtual_blocks > self.virtual_limit:
            raise CapacityError(
                f"This adapter's {loaded.virtual_rows} virtual tokens are too many for a KV cache of "
                f"{self._blocks.count * BLOCK_ROWS} rows (--kv-bytes)."
            )

    # What is asked

    def ready(self, digest: str) -> bool:
        """Whether a request of the adapter may start now."""
        resident = self._residents.get(digest)
        return resident is not None and resident.state is State.READY and digest not in self._yielding

    def virtual(self, digest: str) -> VirtualRows:
        """The virtual rows of an adapter that is ready."""
        return self._residents[digest].virtual

    @property
    def sought(self) -> bool:
        """Whether somebody waits for room."""
        return bool(self._seekers)

    # What is commanded

    def expect(self, loaded: Loaded) -> None:
        """A request is about to be queued: bring its adapter in, at the cost only of adapters that nobody waits for."""
        demand = self._demands.setdefault(loaded.digest, Demand(loaded))
        demand.loaded = loaded
        try:
            if not demand.turns:  # those before it may have been refused, after their turn
                self._work.ready(loaded.digest)
            if loaded.digest not in self._residents and not self._seekers:
                self._bring(loaded, sparing=True)
        except Exception:
            self.count(loaded.digest)  # none: it is not expected
            raise

    def want(self, digest: str, client: Hashable) -> None:
        """A request's turn has come: bring its adapter in as soon as there is room, and keep it until the request starts."""
        demand = self._demands[digest]
        demand.turns[client] = None
        resident = self._residents.get(digest)
        if resident is not None:
            self._file(resident)
        elif client not in [seeker.client for seeker in demand.seekers]:
            self._seek(demand, client)
            self.attend()

    def count(self, digest: str, *, waiting: int = 0, running: int = 0) -> None:
        """So many more of the adapter's requests wait to start, or run."""
        demand = self._demands[digest]
        demand.waiting += waiting
        demand.running += running
        if running > 0 or not demand.waiting:
            demand.turns.clear()
        if not demand.waiting:
            self._forget_seekers(demand)
        if not demand.waiting and not demand.running:
            del self._demands[digest]
        if (resident := self._residents.get(digest)) is not None:
            self._file(resident)

    def attend(self) -> None:
        """Between steps: bring in who waits for room, as far as there is some, and see that nobody waits too long."""
        while (seeker := self._seekers.peek()) is not None:
            if seeker is not self._served_next:
                self._let_go_on()
            demand = self._demands[seeker.digest]
            if not self._bring(demand.loaded, sparing=False):
                self._hold_back(seeker, demand.loaded)
                return
            if seeker in demand.seekers:  # not refused on its way in, with all who seek the same adapter
                self._seekers.pop()  # its client has had a turn; other clients that seek it had none
                self._seekers.release(seeker.client)
                demand.seekers.remove(seeker)
                self._forget_seekers(demand)
        self._let_go_on()

    def pin(self, digest: str, pinned: bool) -> None:
        """Keep an adapter from leaving, or let it go again."""
        (self._pinned.add if pinned else self._pinned.discard)(digest)
        if pinned and self._yielding.pop(digest, None) is not None:  # it stays: another one yields
            self._work.ready(digest)
        for demand in [demand for demand in self._demands.values() if demand.seekers]:
            self._refuse_hopeless(demand)
        if (resident := self._residents.get(digest)) is not None:
            self._file(resident)

    def reclaim(self, keep: str | None) -> bool:
        """Free the virtual rows of an idle adapter other than `keep`; False where there is none."""
        victim = self._idle.first_with_rows(sparing=False, keep=keep)
        if victim is not None:
            self._evict(victim)
        return victim is not None

    def drop(self, digest: str) -> bool:
        """Evict an adapter on request; False while it is busy."""
        resident = self._residents.get(digest)
        if resident is not None and (resident.state is not State.READY or digest in self._demands):
            return False
        if resident is not None:
            self._evict(resident)
        return True

    @property
    def virtual_limit(self) -> int:
        return max(1, (self._blocks.count - 1) // VIRTUAL_SHARE)

    def _file(self, resident: Resident) -> None:
        """See whether a resident could make room."""
        demand = self._demands.get(resident.digest)
        waited_for = demand is not None and bool(demand.turns) and resident.digest not in self._yielding
        kept = waited_for or resident.digest in self._pinned
        if resident.state is not State.READY or kept or (demand is not None and demand.running):
            self._idle.discard(resident.digest)
            self._busy[resident.digest] = resident
        else:
            self._idle.put(resident.digest, resident, waited_for=demand is not None)
            self._busy.pop(resident.digest, None)

    def _lacking(self, loaded: Loaded) -> tuple[int, int]:
        """Bytes and cache blocks that must be freed for an adapter; none where the figures are not above 0."""
        return (
            self.bytes + loaded.device_bytes - self.budget_bytes,
            self.virtual_blocks + loaded.virtual_blocks - self.virtual_limit,
        )

    def _bring(self, loaded: Loaded, *, sparing: bool) -> bool:
        """Start to bring an adapter in; False where there is no room for it now. `sparing`: what requests wait for."""
        size, blocks = self._lacking(loaded)
        idle_size, idle_blocks = self._idle.room(sparing=sparing)
        if size > idle_size or blocks > idle_blocks:
            return False
        while size > 0 or blocks > 0:
            with_rows = self._idle.first_with_rows(sparing=sparing) if size <= 0 else None
            victim = with_rows or self._idle.first(sparing=sparing)
            self._evict(victim)
            size, blocks = self._lacking(loaded)
        resident = self._residents[loaded.digest] = self._busy[loaded.digest] = Resident.of(loaded)
        self.bytes += resident.bytes
        self.virtual_blocks += resident.blocks
        with self._way_in(resident):
            resident.hold(self._work)
            self._work.prepare(resident)
        return True

    def _seek(self, demand: Demand, client: Hashable) -> None:
        """Queue for room, by turns of the clients."""
        seeker = Seeker(client, demand.loaded.digest, self._clock())
        demand.seekers.append(seeker)
        self._seekers.push(client, seeker.digest, seeker)
        self._refuse_hopeless(demand)

    def _forget_seekers(self, demand: Demand) -> None:
        for seeker in demand.seekers:
            self._seekers.remove(seeker.client, seeker.digest, seeker)
        demand.seekers.clear()

    def _refuse_hopeless(self, demand: Demand) -> None:
        """Where pinned adapters leave too little room, waiting would never end."""
        pinned = [self._residents[digest] for digest in self._pinned if digest in self._residents]
        size = sum(one.bytes for one in pinned) + demand.loaded.device_bytes
        blocks = sum(one.blocks for one in pinned) + demand.loaded.virtual_blocks
        if size > self.budget_bytes or blocks > self.virtual_limit:
            self._forget_seekers(demand)
            message = "Pinned adapters fill the device: unpin one, or raise --adapter-device-bytes."
            self._work.refused(demand.loaded.digest, CapacityError(message))

    def _hold_back(self, seeker: Seeker, loaded: Loaded) -> None:
        """Let residents yield to one that has waited long enough: those whose running requests end soonest."""
        now = self._clock()
        if now < max(seeker.since + HOLD_BACK_S, self._ask_again):
            return
        self._ask_again = now + _ASK_AGAIN_S
        size, blocks = self._lacking(loaded)
        size -= sum(one.bytes for one in self._yielding.values())
        blocks -= sum(one.blocks for one in self._yielding.values())
        if size <= 0 and blocks <= 0:
            return
        left, chosen = self._work.tokens_left(), {}
        for one in self._by_their_going(now, left):
            if size > 0 or (blocks > 0 and one.blocks):
                chosen[one.digest] = one
                size -= one.bytes
                blocks -= one.blocks
        if size <= 0 and blocks <= 0:
            self._served_next = seeker
            self._yielding.update(chosen)
            for one in chosen.values():
                if one.digest not in left:  # what runs is filed when it ends
                    self._file(one)

    def _by_their_going(self, now: float, left: Mapping[str, int]) -> list[Resident]:
        """Those that could yield and do not yet: the idle ones, that they stay so; then by what their requests have `left` to do.
        Written out, for hundreds run, and the engine's thread looks at each."""
        ready, since, spared = State.READY, now - HOLD_BACK_S, self._pinned | self._yielding.keys()
        idle = [one for one in self._idle if one.digest not in spared]
        busy = [
            one for one in self._busy.values() if one.state is ready and one.since <= since and one.digest not in spared
        ]
        return idle + sorted(busy, key=lambda one: left.get(one.digest, 0))

    def _let_go_on(self) -> None:
        """Nobody is held back any more."""
        self._served_next = None
        held_back, self._yielding = self._yielding, {}
        for digest, resident in held_back.items():
            self._file(resident)
            self._work.ready(digest)

    def _become_ready(self, resident: Resident) -> None:
        resident.state = State.READY
        resident.since = self._clock()
        resident.let_go(self._work)
        self._file(resident)
        self._work.ready(resident.digest)

    def discrepancy(self, waiting: Mapping[str, int], running: Mapping[str, int]) -> str | None:
        """What does not agree with how many of each adapter's requests wait and run; None where everything does."""
        for digest in self._demands.keys() | waiting.keys() | running.keys():
            demand = self._demands.get(digest)
            counted = (demand.waiting, demand.running) if demand else (0, 0)
            if counted != (waiting.get(digest, 0), running.get(digest, 0)):
                return f"adapter {digest[:12]} counts {counted} requests that wait and run, and has others"
        if self.bytes != sum(one.bytes for one in self._residents.values()):
            return "the residents' bytes are not their sum"
        return None

    # The way in, step by step

    def add_to_runner(self, resident: Resident, made: Prepared | GraftError) -> None:
        """`prepare` is done."""
        with self._way_in(resident):
            prepared = unless_error(made)
            self._runner.add(resident.digest, prepared)
            self.bytes += prepared.bytes - resident.bytes
            resident.bytes = prepared.bytes
            while self.bytes > self.budget_bytes and self._idle.room(sparing=True)[0]:  # more than was reckoned with
                self._evict(self._idle.first(sparing=True))
            resident.state = State.ROWS
            rows = resident.loaded.rows
            if rows is None:
                self._start_proof(resident, [], 0)
            elif isinstance(rows, CacheRows):
                taken = self._work.take_blocks(resident.blocks, resident.digest)
                resident.virtual = VirtualRows(resident.loaded.virtual_rows, rows.text_start, tuple(taken))
                self._runner.cache.write(rows, taken)
                self._start_proof(resident, taken, rows.text_start)
            else:
                self._work.run_rows(resident, rows.rows, lambda blocks: self._take_rows(resident, blocks))

    def refuse(self, resident: Resident, error: GraftError) -> None:
        """It can't come in: its requests fail, and nothing of it stays."""
        if self._residents.get(resident.digest) is not resident:
            return
        if (demand := self._demands.get(resident.digest)) is not None:
            demand.turns.clear()  # whoever waits for it is about to fail
            self._forget_seekers(demand)
        self._evict(resident)
        self._work.refused(resident.digest, error)

    @contextmanager
    def _way_in(self, resident: Resident) -> Iterator[None]:
        """Whatever is raised within refuses the adapter, and costs nobody else anything."""
        try:
            yield
        except GraftError as error:
            self.refuse(resident, error)
        except Exception as error:
            log.exception("adapter %s could not be brought in", resident.digest)
            message = f"The adapter can't be brought to the device: {type(error).__name__}: {error}"
            self.refuse(resident, BrokenError(message))

    def _take_rows(self, resident: Resident, blocks: list[int] | GraftError) -> None:
        """A soft prompt has been run through the base: its blocks are the adapter's from now on."""
        with self._way_in(resident):
            self._start_proof(resident, unless_error(blocks), resident.loaded.virtual_rows)

    def _start_proof(self, resident: Resident, blocks: Sequence[int], text_start: int) -> None:
        resident.virtual = VirtualRows(resident.loaded.virtual_rows, text_start, tuple(blocks))
        if resident.digest in self._proven:
            resident.loaded.case = resident.loaded.case.with_verdict(self._proven[resident.digest])
            self._become_ready(resident)
            return
        resident.state = State.PROVING
        self._work.prove(resident, lambda wrong: self._end_proof(resident, wrong))

    def _end_proof(self, resident: Resident, wrong: GraftError | None) -> None:
        with self._way_in(resident):
            unless_error(wrong)
            verdict = resident.loaded.case.verdict
            assert verdict is not None  # the proof has closed the case
            self._proven[resident.digest] = verdict
            self._become_ready(resident)

    def _evict(self, resident: Resident) -> None:
        """Raises StateLostError where it can't be taken out whole."""
        digest = resident.digest
        try:
            del self._residents[digest]
            self._yielding.pop(digest, None)
            self._idle.discard(digest)
            self._busy.pop(digest, None)
            self.bytes -= resident.bytes
            self.virtual_blocks -= resident.blocks
            if digest in self._runner.adapters:
                self._runner.remove(digest)
            self._blocks.release(resident.virtual.blocks)
            resident.let_go(self._work)
        except Exception as error:
            raise StateLostError(f"adapter {digest[:12]} could not be taken out") from error
        self.evictions += 1
        demand = self._demands.get(digest)
        if demand is not None:
            for client in demand.turns:
                self._seek(demand, client)
