"""What runs in the next step: continuous batching with chunked prefill, admission, preemption.

Pure bookkeeping over sequences and cache blocks: no torch, no clock, no requests' text. Each step, running
sequences come first, in the order of admission; those with one row to go (decoding) before those with a prompt to
work through, whose share of the step's rows is split fairly over tenants. What is left of the budget admits waiting
sequences by deficit round robin. When blocks run out, the sequence admitted last gives up its blocks and waits to
recompute them, losing nothing.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.server.adapters.readiness import NO_ROWS, Gate, VirtualRows
from graft.server.cache.blocks import BlockPool, chain_hash, root_hash
from graft.server.cache.step import BLOCK_ROWS, Run
from graft.server.engine.fair_queue import FairQueue

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class SequenceState:
    """Tokens whose keys and values are to be computed, and where they are."""

    owner: str | None  # an adapter's digest, None for the bare base
    tokens: list[int]
    max_new: int
    logits_from: int  # first token whose logits are (still) wanted
    virtual: VirtualRows = NO_ROWS
    tenant: Hashable = None
    runs_last: bool = False  # the last token too where no new one is wanted: what follows it is asked about
    inputs: "Tensor | None" = None  # rows [P, H] in place of tokens: an adapter's soft prompt on its way into the cache
    blocks: list[int] = field(default_factory=list)  # its own, after the shared ones of `virtual`
    computed: int = 0
    _hashes: list[bytes] = field(default_factory=list)
    _published: int = 0

    @property
    def needed(self) -> int:
        """Tokens to compute before the next one can be drawn (or, if none is wanted, before all is known)."""
        return len(self.tokens) - (self.max_new == 0 and self.inputs is None and not self.runs_last)

    @property
    def remaining(self) -> int:
        return self.needed - self.computed

    @property
    def cost(self) -> int:
        return len(self.tokens) + self.max_new

    @property
    def table(self) -> list[int]:
        return [*self.virtual.whole, *self.blocks]

    def blocks_for(self, tokens: int) -> int:
        """How many own blocks the first `tokens` tokens need."""
        own_rows = self.virtual.count % BLOCK_ROWS + tokens
        return -(-own_rows // BLOCK_ROWS)

    def hashes(self, tokens: int) -> Sequence[bytes]:
        """Chain hashes of the own blocks that the first `tokens` tokens fill."""
        first = BLOCK_ROWS - self.virtual.count % BLOCK_ROWS
        while (stop := first + BLOCK_ROWS * len(self._hashes)) <= tokens:
            parent = self._hashes[-1] if self._hashes else root_hash(self.owner)
            self._hashes.append(chain_hash(parent, self.tokens[max(0, stop - BLOCK_ROWS) : stop]))
        return self._hashes[: max(0, (tokens - first) // BLOCK_ROWS + 1)]


@dataclass(frozen=True, slots=True)
class Chunk:
    """`count` tokens of a sequence from `start` on; the last `logits` of them want logits."""

    sequence: SequenceState
    start: int
    count: int
    logits: int

    def run(self) -> Run:
        """The chunk as a runner takes it; its owner is set when the batch is sorted."""
        own, stop = self.sequence, self.start + self.count
        return Run(
            owner=0,
            tokens=() if own.inputs is not None else own.tokens[self.start : stop],
            start=own.virtual.count + self.start,
            position=own.virtual.text_start + self.start,
            blocks=own.table,
            logits=self.logits,
            virtual=None if own.inputs is None else own.inputs[self.start : stop],
        )


@dataclass
class StepPlan:
    """One step. `copies` are partial blocks to copy first; `published` blocks become findable with this step."""

    chunks: list[Chunk] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    rows: int = 0


class Scheduler:
    """Used by the engine's thread alone.

    `step_rows`: most rows in a step. `gate(sequence)` says whether its adapter is in place, and sets its virtual
    rows. `reclaim(keep)` may free blocks that an idle adapter other than `keep` holds, and returns whether it did.
    """

    def __init__(
        self,
        blocks: BlockPool,
        *,
        step_rows: int,
        max_running: int,
        prefix_sharing: bool = True,
        gate: Callable[[SequenceState], Gate] = lambda sequence: Gate.READY,
        reclaim: Callable[[str | None], bool] = lambda keep: False,
    ):
        self.blocks = blocks
        self.step_rows = step_rows
        self.max_running = max_running
        self.preemptions = 0
        self._sharing = prefix_sharing
        self._gate = gate
        self._reclaim = reclaim
        self._running: list[SequenceState] = []  # by admission
        self._returning: deque[SequenceState] = deque()  # preempted
        self._waiting: FairQueue[SequenceState] = FairQueue(quantum=step_rows)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._returning)

    def add(self, sequence: SequenceState) -> None:
        self._waiting.push(sequence.tenant, sequence, sequence.cost)

    def remove(self, sequence: SequenceState) -> None:
        """Forget a sequence, finished or cancelled, wherever it is; its blocks are free at once."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._returning:
            self._returning.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)

    def detach(self, sequence: SequenceState) -> list[int]:
        """Forget a sequence but keep its blocks, which are the caller's from now on."""
        blocks, sequence.blocks = sequence.blocks, []
        self.remove(sequence)
        return blocks

    def take(self, n: int, keep: str | None) -> list[int]:
        """n blocks at once, from idle adapters and those who run if need be. Not while a plan is being carried out."""
        while self.blocks.available < n:
            if self._reclaim(keep):
                continue
            if not self._running:
                break
            self._preempt(self._running[-1])
        return self.blocks.take(n)

    def is_running(self, owner: str) -> bool:
        return any(sequence.owner == owner for sequence in self._running)

    def plan(self) -> StepPlan:
        """The next step. Empty when nothing can run."""
        plan = StepPlan()
        for sequence in [s for s in self._running if s.remaining == 1]:
            if sequence in self._running:  # not preempted meanwhile
                self._schedule(plan, sequence, 1)
        shares = self._shares(plan)
        rows = sum(shares.values())
        blocks = sum(s.blocks_for(s.computed + n) - len(s.blocks) for s, n in shares.items())
        while plan.rows + rows < self.step_rows and self._admit(plan, rows, blocks):
            pass
        for sequence, share in shares.items():
            rows -= share
            count = min(sequence.remaining, self.step_rows - plan.rows - rows)
            if count > 0 and sequence in self._running:  # not preempted meanwhile
                self._schedule(plan, sequence, count)
        return plan

    def withdraw(self, plan: StepPlan) -> None:
        """The step failed: what it promised to compute can't be found any more."""
        self.blocks.withdraw(plan.published)

    def _shares(self, plan: StepPlan) -> dict[SequenceState, int]:
        """Rows for each prompt under way: what decoding left, split over their tenants and those who wait to start.

        What a tenant can't use, or nobody starts with, is given out in the order of admission afterwards.
        """
        scheduled = {chunk.sequence for chunk in plan.chunks}
        prompts = [s for s in self._running if s.remaining > 1 and s not in scheduled]
        tenants = {s.tenant for s in prompts}
        parts = len(tenants) + (self.waiting > 0 and len(self._running) < self.max_running)
        left = dict.fromkeys(tenants, max(1, (self.step_rows - plan.rows) // max(1, parts)))
        spare = self.step_rows - plan.rows
        shares: dict[SequenceState, int] = {}
        for sequence in prompts:
            shares[sequence] = min(sequence.remaining, left[sequence.tenant], spare)
            left[sequence.tenant] -= shares[sequence]
            spare -= shares[sequence]
        return shares

    def _admit(self, plan: StepPlan, rows: int, blocks: int) -> bool:
        """Start the next waiting sequence if it fits beside the `rows` and `blocks` promised to others; False if not."""
        if len(self._running) >= self.max_running or (sequence := self._next()) is None:
            return False
        findable = sequence.hashes(self._count_shareable(sequence))
        while self._running and self.blocks.available < self._lacking(sequence, findable) + blocks + 1:
            if not self._reclaim(sequence.owner):
                return False
        if sequence in self._returning:
            self._returning.remove(sequence)
        else:
            self._waiting.pop()
        self._running.append(sequence)
        self._share(sequence, findable)
        return self._schedule(plan, sequence, min(sequence.remaining, self.step_rows - plan.rows - rows))

    def _lacking(self, sequence: SequenceState, findable: Sequence[bytes]) -> int:
        """Available blocks that a sequence takes when it starts: those it computes, and idle ones that it finds."""
        found = self.blocks.peek(findable)
        return sequence.blocks_for(sequence.needed) - found.count + found.idle

    def _next(self) -> SequenceState | None:
        full = False
        for sequence in self._returning:
            gate = self._gate(sequence)
            if gate is Gate.READY:
                return sequence
            full |= gate is Gate.FULL
        return self._waiting.peek(self._gate, promised_only=full)

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
        sequence.computed = stop
        sequence.logits_from = max(sequence.logits_from, stop)
        self._publish(plan, sequence)
        return True

    def _publish(self, plan: StepPlan, sequence: SequenceState) -> None:
        if not self._sharing or sequence.inputs is not None:
            return
        hashes = sequence.hashes(sequence.computed)
        for i in range(sequence._published, len(hashes)):
            self.blocks.publish(sequence.blocks[i], hashes[i])
            plan.published.append(sequence.blocks[i])
        sequence._published = max(sequence._published, len(hashes))

    def _make_room(self, plan: StepPlan, sequence: SequenceState, missing: int) -> bool:
        """Free blocks for a running sequence; False when it had to give way itself."""
        scheduled = {id(chunk.sequence) for chunk in plan.chunks}
        while self.blocks.available < missing:
            if self._reclaim(sequence.owner):
                continue
            victim = next((s for s in reversed(self._running) if id(s) not in scheduled), sequence)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: SequenceState) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        # In front: it was admitted, and has paid, before anything that waits; earlier ones go before later ones.
        self._returning.appendleft(sequence)
        self.preemptions += 1

    def _release(self, sequence: SequenceState) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence._published = 0
