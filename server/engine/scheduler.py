"""What runs in the next step: continuous batching with chunked prefill, admission, preemption.

Pure bookkeeping over sequences and cache blocks: no torch, no clock, no requests' text. Each step, running
sequences come first, in the order of admission; those with one row to go (decoding) before those with a prompt to
work through, whose share of the step's rows is split fairly over clients. What is left of the budget admits waiting
sequences by start-time fair queueing over clients, then by a client's own priorities, then over its adapters; a client that
runs nothing comes first, and there are places beside the others' for it. When blocks run out, what was admitted last of the client that runs most gives up its
blocks and waits to recompute them, losing nothing.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from graft.server.adapters.readiness import Adapters, NoAdapters
from graft.server.cache.blocks import BlockPool
from graft.server.cache.step import BLOCK_ROWS
from graft.server.engine.sequence import Chunk, SequenceState, StepPlan
from graft.server.fair_queue import FairQueue
from graft.server.operations.step_pace import StepPace

_GUEST_SHARE = 8  # of all places one more, for guests


class PlanError(Exception):
    """Planning failed while it was decided about `sequence` (None: about no one); nothing of the step is planned."""

    def __init__(self, sequence: SequenceState | None):
        super().__init__("planning a step failed")
        self.sequence = sequence


class Scheduler:
    """Used by the engine's thread alone.

    `pace`: how many rows a step has at most. `max_running`: most sequences in a step; a client that has none may have one
    beyond (`guests`). `adapters`: what sequences need, and whether it is in place.
    """

    def __init__(
        self,
        blocks: BlockPool,
        *,
        pace: StepPace,
        max_running: int,
        prefix_sharing: bool = True,
        adapters: Adapters | None = None,
    ):
        self.blocks = blocks
        self.max_running = max_running
        self.guests = guest_places(max_running, pace.least)
        self.preemptions = 0
        self._pace = pace
        self._sharing = prefix_sharing
        self._adapters: Adapters = adapters or NoAdapters()
        self._running: dict[SequenceState, None] = {}  # by admission
        self._returning: OrderedDict[SequenceState, None] = OrderedDict()  # preempted, by when they were admitted first
        self._waiting: FairQueue[SequenceState] = FairQueue()
        self._at: SequenceState | None = None  # which one `plan` decides about
        self._aside = 0  # rows of the present step left for sequences that step aside

    @property
    def step_rows(self) -> int:
        """Most in the next step."""
        return self._pace.rows

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._returning)

    def add(self, sequence: SequenceState) -> None:
        self._waiting.push(sequence.client, sequence.owner, sequence, sequence.cost, sequence.weight, sequence.priority)
        self._count(sequence, waiting=1)

    def remove(self, sequence: SequenceState) -> None:
        """Forget a sequence, finished or cancelled, wherever it is; its blocks are free at once."""
        if sequence in self._running:
            del self._running[sequence]
            self._waiting.release(sequence.client)
            self._count(sequence, running=-1)
        elif sequence in self._returning:
            del self._returning[sequence]
            self._count(sequence, waiting=-1)
        else:
            self._waiting.remove(sequence.client, sequence.owner, sequence, sequence.priority)
            self._count(sequence, waiting=-1)
        self._release(sequence)

    def detach(self, sequence: SequenceState) -> list[int]:
        """Forget a sequence but keep its blocks, which are the caller's from now on."""
        blocks, sequence.blocks = sequence.blocks, []
        self.remove(sequence)
        return blocks

    def wake(self, digest: str) -> None:
        """An adapter is ready that sequences were passed over for."""
        self._waiting.wake(digest)

    def miss(self, sequence: SequenceState) -> None:
        """Nothing could be drawn from the last token's logits when they were there: they are still wanted."""
        sequence.logits_from -= 1

    def repeat(self, sequence: SequenceState) -> None:
        """Compute the last token again, whose logits were missed, where that has not been undone in the meantime."""
        if sequence in self._running and sequence.remaining == 0:
            sequence.computed -= 1

    def take(self, n: int, keep: str | None) -> list[int]:
        """n blocks at once, from idle adapters and those who run if need be. Not while a plan is being carried out."""
        while self.blocks.available < n:
            if self._adapters.reclaim(keep):
                continue
            if not self._running:
                break
            self._preempt(self._victim(self._running))
        return self.blocks.take(n)

    def tokens_left(self) -> dict[str, int]:
        """Adapters that sequences run with, by digest: rows that one of them may still take, at most."""
        left: dict[str, int] = {}
        for sequence in self._running:
            rows = sequence.cost - sequence.computed
            if sequence.awaits is not None and rows > left.get(sequence.awaits, 0):
                left[sequence.awaits] = rows
        return left

    def sequences(self) -> Iterator[tuple[SequenceState, bool]]:
        """All of them, wherever they are, and whether they run."""
        yield from ((sequence, True) for sequence in self._running)
        yield from ((sequence, False) for sequence in chain(self._returning, self._waiting))

    def plan(self) -> StepPlan:
        """The next step. Empty when nothing can run. Raises PlanError, after which the other sequences can go on."""
        plan = StepPlan()
        self._at = None
        try:
            self._fill(plan)
        except Exception as error:
            self._undo(plan)
            raise PlanError(self._at) from error
        finally:
            self._at = None
        return plan

    def follow(self, draws: Mapping[SequenceState, int]) -> StepPlan | None:
        """The step after one under way, before it is known what that one draws: one row more of whoever is not at the end.

        `draws`: whose tokens it draws, and as which of them. None where `plan` could find more to do than that, or something
        else: a prompt to work through, somebody who could start, no block left. Raises PlanError, after which the sequences
        of the step under way can't go on.
        """
        going = [sequence for sequence in draws if sequence.max_new > 1]
        if not going or draws.keys() != self._running.keys() or any(one.remaining for one in draws):
            return None
        if self.waiting and (len(going) < len(draws) or self._next() is not None):
            return None
        if self.blocks.available < sum(one.blocks_for(one.computed + 1) - len(one.blocks) for one in going):
            return None
        plan = StepPlan()
        try:
            for sequence in going:
                sequence.foresee(draws[sequence])
                self._schedule(plan, sequence, 1)
        except Exception as error:
            self.withdraw(plan)
            raise PlanError(None) from error
        return plan

    def _fill(self, plan: StepPlan) -> None:
        self._make_way()
        for sequence in [s for s in self._running if s.remaining == 1]:
            if sequence in self._running:  # not preempted meanwhile
                self._schedule(plan, sequence, 1)
        self._at = None  # what the others may have is decided about no one of them
        self._aside = plan.rows or self.step_rows
        shares = self._shares(plan)
        rows = sum(shares.values())
        blocks = sum(s.blocks_for(s.computed + n) - len(s.blocks) for s, n in shares.items())
        while plan.rows + rows < self.step_rows and self._admit(plan, rows, blocks):
            pass
        for sequence, share in shares.items():
            rows -= share
            count = min(self._most(sequence), self.step_rows - plan.rows - rows)
            if count > 0 and sequence in self._running:  # not preempted meanwhile
                self._schedule(plan, sequence, count)

    def _undo(self, plan: StepPlan) -> None:
        """Who is in a plan that nobody carries out computes anew: rows that others may have found were never written."""
        self.withdraw(plan)
        planned = {chunk.sequence: chunk for chunk in plan.chunks}
        for sequence in [s for s in reversed(self._running) if s in planned]:
            sequence.logits_from -= planned[sequence].logits
            self._preempt(sequence)

    def withdraw(self, plan: StepPlan) -> None:
        """The step failed: what it promised to compute can't be found any more."""
        self.blocks.withdraw(plan.published)

    def distrust(self, sequence: SequenceState) -> None:
        """What came of it are no numbers: nobody is to find its blocks, those among them that it found itself included."""
        self.blocks.withdraw(sequence.blocks)

    def _shares(self, plan: StepPlan) -> dict[SequenceState, int]:
        """Rows for each prompt under way: what decoding left, split over their clients and those who wait to start, and
        within a client over its adapters.

        What one can't use, or nobody starts with, is given out in the order of admission afterwards.
        """
        scheduled = {chunk.sequence for chunk in plan.chunks}
        prompts = [s for s in self._running if s.remaining > 1 and s not in scheduled]
        if not prompts:
            return {}
        spare = self.step_rows - plan.rows
        lines = {(s.client, s.owner): None for s in prompts}
        clients = Counter(client for client, _ in lines)
        parts = len(clients) + (self.waiting > 0 and len(self._running) < self.max_running + self.guests)
        left = {line: max(1, spare // (parts * clients[line[0]])) for line in lines}
        shares: dict[SequenceState, int] = {}
        for sequence in prompts:
            line = sequence.client, sequence.owner
            shares[sequence] = min(self._most(sequence), left[line], spare)
            left[line] -= shares[sequence]
            spare -= shares[sequence]
        return shares

    def _admit(self, plan: StepPlan, rows: int, blocks: int) -> bool:
        """Start the next waiting sequence if it fits beside the `rows` and `blocks` promised to others; False if not."""
        if (sequence := self._next()) is None:
            return False
        findable = sequence.hashes(self._count_shareable(sequence))
        while self._running and self.blocks.available < self._lacking(sequence, findable) + blocks + 1:
            if not self._adapters.reclaim(sequence.owner):
                return False
        if sequence in self._returning:
            del self._returning[sequence]
            self._waiting.hold(sequence.client)
        else:
            self._waiting.pop()
        self._running[sequence] = None
        self._count(sequence, waiting=-1, running=1)
        self._share(sequence, findable)
        return self._schedule(plan, sequence, min(self._most(sequence), self.step_rows - plan.rows - rows))

    def _most(self, sequence: SequenceState) -> int:
        """Rows that it may take of this step, as far as they are free."""
        return min(sequence.remaining, max(1, self._aside)) if sequence.steps_aside else sequence.remaining

    def _lacking(self, sequence: SequenceState, findable: Sequence[bytes]) -> int:
        """Available blocks that a sequence takes when it starts: those it computes, and idle ones that it finds."""
        found = self.blocks.peek(findable)
        return sequence.blocks_for(sequence.needed) - found.count + found.idle

    def _next(self) -> SequenceState | None:
        """What starts next where there is a place: first of a client that runs nothing, then what was preempted."""
        sequence = self._newcomer()
        if sequence is None and len(self._running) < self.max_running:
            sequence = self._first_ready(self._returning) or self._waiting.peek(self._ready, self._want)
        return sequence

    def _newcomer(self) -> SequenceState | None:
        """What starts next of a client that runs nothing, as long as there is a guest's place for it."""
        if len(self._running) >= self.max_running + self.guests:
            return None
        alone = [s for s in self._returning if not self._waiting.holds(s.client)]
        return self._first_ready(alone) or self._waiting.peek(self._ready, self._want, newcomers=True)

    def _first_ready(self, returning: Iterable[SequenceState]) -> SequenceState | None:
        for sequence in returning:
            if self._ready(sequence):
                return sequence
            self._want(sequence)
        return None

    def _make_way(self) -> None:
        """Free blocks for a client that runs nothing, from who runs most; nobody is left with nothing by that."""
        while self._running and (sequence := self._newcomer()) is not None:
            findable = sequence.hashes(self._count_shareable(sequence))
            if self.blocks.available > self._lacking(sequence, findable) + self._growth():
                return
            if self._adapters.reclaim(sequence.owner):
                continue
            victim = self._victim(self._running)
            if self._waiting.holds(victim.client) < 2:
                return
            self._preempt(victim)

    def _growth(self) -> int:
        """At most so many blocks will those who run take in a step."""
        prompts = sum(s.blocks_for(s.needed) - len(s.blocks) for s in self._running if s.remaining > 1)
        each = sum(s.blocks_for(s.computed + 1) > len(s.blocks) for s in self._running)
        return each + min(self.step_rows // BLOCK_ROWS, prompts)

    def _ready(self, sequence: SequenceState) -> bool:
        """Whether what a sequence needs is in place; if so its virtual rows are known from now on."""
        self._at = sequence
        if sequence.awaits is None:
            return True
        if not self._adapters.ready(sequence.awaits):
            return False
        sequence.virtual = self._adapters.virtual(sequence.awaits)
        return True

    def _want(self, sequence: SequenceState) -> None:
        if sequence.awaits is not None:
            self._adapters.want(sequence.awaits, sequence.client)

    def _count(self, sequence: SequenceState, *, waiting: int = 0, running: int = 0) -> None:
        if sequence.awaits is not None:
            self._adapters.count(sequence.awaits, waiting=waiting, running=running)

    def _count_shareable(self, sequence: SequenceState) -> int:
        """Leading tokens that may be found instead of computed: those whose logits nobody wants."""
        return min(sequence.logits_from, sequence.needed) if self._sharing and sequence.inputs is None else 0

    def _share(self, sequence: SequenceState, findable: Sequence[bytes]) -> None:
        shared = self.blocks.find(findable)
        sequence.blocks = shared
        sequence._published = len(shared)
        sequence.computed = BLOCK_ROWS * len(shared) - sequence.virtual.count % BLOCK_ROWS if shared else 0
        self.blocks.hits += len(shared)
        self.blocks.misses += len(findable) - len(shared)

    def _schedule(self, plan: StepPlan, sequence: SequenceState, count: int) -> bool:
        """Put `count` tokens of a running sequence into the step, taking blocks from others if need be."""
        self._at = sequence
        stop = sequence.computed + count
        missing = sequence.blocks_for(stop) - len(sequence.blocks)
        if missing > 0 and not self._make_room(plan, sequence, missing):
            return False
        if missing > 0:
            begins = not sequence.blocks
            sequence.blocks += self.blocks.take(missing)
            if begins and sequence.virtual.partial is not None:
                plan.copies.append((sequence.virtual.partial, sequence.blocks[0]))
        logits = max(0, stop - max(sequence.computed, sequence.logits_from))
        plan.chunks.append(Chunk(sequence, sequence.computed, count, logits))
        plan.rows += count
        self._aside -= count if sequence.steps_aside else 0
        sequence.computed = stop
        sequence.logits_from = max(sequence.logits_from, stop)
        self._publish(plan, sequence)
        return True

    def _publish(self, plan: StepPlan, sequence: SequenceState) -> None:
        if not self._sharing or sequence.inputs is not None:
            return
        hashes = sequence.hashes(min(sequence.computed, sequence.known))
        for i in range(sequence._published, len(hashes)):
            plan.published.append(sequence.blocks[i])  # first: what is not listed could not be withdrawn
            self.blocks.publish(sequence.blocks[i], hashes[i])
        sequence._published = max(sequence._published, len(hashes))

    def _make_room(self, plan: StepPlan, sequence: SequenceState, missing: int) -> bool:
        """Free blocks for a running sequence; False when it had to give way itself."""
        scheduled = {chunk.sequence for chunk in plan.chunks}
        while self.blocks.available < missing:
            if self._adapters.reclaim(sequence.owner):
                continue
            others = [one for one in self._running if one not in scheduled]
            victim = self._victim(others) if others else sequence
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _victim(self, running: Iterable[SequenceState]) -> SequenceState:
        """Who gives way: what was admitted last of the client that runs most."""
        last = {sequence.client: sequence for sequence in running}  # a client's last one, clients by their first
        most = max(self._waiting.holds(client) for client in last)
        at_most = {client for client in last if self._waiting.holds(client) == most}
        return next(s for s in reversed(self._running) if s.client in at_most and last[s.client] is s)

    def _preempt(self, sequence: SequenceState) -> None:
        del self._running[sequence]
        self._release(sequence)
        # In front: it was admitted, and has paid, before anything that waits; earlier ones go before later ones.
        self._returning[sequence] = None
        self._returning.move_to_end(sequence, last=False)
        self._waiting.release(sequence.client)
        self._count(sequence, waiting=1, running=-1)
        self._want(sequence)  # it has begun, and must come to its end
        self.preemptions += 1

    def _release(self, sequence: SequenceState) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence._published = 0


def guest_places(max_running: int, step_rows: int | None) -> int:
    """Places beyond `max_running`, for clients that run nothing: whoever has all of those can't keep others from starting.

    `step_rows`: that a step has at least, where that is not to follow from the places.
    """
    wanted = max(1, max_running // _GUEST_SHARE)
    return wanted if step_rows is None else min(wanted, step_rows - max_running)
