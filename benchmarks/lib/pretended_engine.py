"""A runner, an engine and a clock that only keep count: the tiers and the scheduler alone, as real as they are.

For tests, and for what their decisions cost.
"""

from collections import Counter
from types import SimpleNamespace

import torch

from graft.hub.adapters.probe import ProofOutcome, Verdict
from graft.hub.adapters.serving_forms import InputRows
from graft.server.adapters.device import DeviceTier
from graft.server.adapters.host import HostTier
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.prover import Case
from graft.server.cache.blocks import BlockPool
from graft.server.engine.scheduler import Scheduler
from graft.server.engine.sequence import SequenceState
from graft.server.operations.step_pace import StepPace


class Pretended:
    """The runner, the engine and the clock. `instant`: adapters are prepared at once, else by `finish`."""

    def __init__(self, room, *, blocks=4001, instant=True, max_running=8):
        self.now = 0.0
        self.instant = instant
        self.added, self.preparing, self.failed = set(), {}, {}
        self.blocks = BlockPool(blocks)
        self.tier = DeviceTier(self, self.blocks, self, budget_bytes=room, clock=lambda: self.now)
        self.scheduler = Scheduler(
            self.blocks,
            pace=StepPace(4 * max_running, 4 * max_running),
            max_running=max_running,
            adapters=self.tier,
        )
        self.loaded, self.held = {}, Counter()

    def adapter(self, digest, size=1, virtual=0):
        self.loaded[digest] = adapter(digest, size, virtual)

    def ask(self, digest=None, new=1000, client="one", prompt=(1, 2)):
        """Queue a request."""
        sequence = SequenceState(digest, [*prompt], new, len(prompt) - 1, client=client, awaits=digest)
        if digest:
            self.tier.expect(self.loaded[digest])
        self.scheduler.add(sequence)
        return sequence

    def step(self, seconds=0.01):
        """A turn of the engine; the sequences that took part. One that has all its tokens ends."""
        self.now += seconds
        self.tier.attend()
        plan = self.scheduler.plan()
        for chunk in plan.chunks:
            sequence = chunk.sequence
            assert sequence.owner is None or sequence.owner in self.added
            if sequence.remaining == 0:
                sequence.tokens.append(1)
                sequence.max_new -= 1
                if sequence.max_new == 0:
                    self.scheduler.remove(sequence)
        return [chunk.sequence for chunk in plan.chunks]

    def finish(self, digest):
        self.tier.add_to_runner(self.preparing.pop(digest), SimpleNamespace(bytes=self.loaded[digest].bytes))

    # AdapterWork

    def prepare(self, resident):
        self.preparing[resident.digest] = resident
        if self.instant:
            self.finish(resident.digest)

    def hold(self, loaded):
        self.held[loaded.digest] += 1

    def release(self, loaded):
        self.held[loaded.digest] -= 1

    def take_blocks(self, n, digest):
        return self.scheduler.take(n, digest)

    def run_rows(self, resident, rows, done):
        done(self.scheduler.take(resident.blocks, resident.digest))

    def prove(self, resident, done):
        done(None)

    def ready(self, digest):
        self.scheduler.wake(digest)

    def tokens_left(self):
        return self.scheduler.tokens_left()

    def refused(self, digest, error):
        self.failed[digest] = error

    # Runner

    @property
    def adapters(self):
        return frozenset(self.added)

    def add(self, digest, prepared):
        assert digest not in self.added
        self.added.add(digest)

    def remove(self, digest):
        self.added.remove(digest)


def adapter(digest, size=1, virtual=0):
    """In host memory, of so many bytes; it has no more than that."""
    rows = InputRows(torch.zeros(virtual, 2)) if virtual else None
    case = Case(digest).with_verdict(Verdict(ProofOutcome.UNPROVEN, "a test"))
    return Loaded(digest, "lora", "lora", (), rows, case, size, size, 0.0)


def crowded_host(adapters, used):
    """A host tier that so many adapters fill, of which so many are in use; and these."""
    tier = HostTier(None, None, None, budget_bytes=adapters, device_size=len)
    for number in range(adapters):
        tier._memory.put(adapter(str(number)))
    kept = tier.snapshot()[:used]
    for loaded in kept:
        tier.hold(loaded)
    return tier, kept


def crowded(residents, running):
    """So many residents, of which so many run; two more adapters, of which one may evict and one finds no room."""
    world = Pretended(room=residents, blocks=20_000, max_running=running + 8)
    for number in range(residents):
        world.adapter(str(number))
    for number in range(residents):
        world.ask(str(number), new=1)
        world.step()
    for number in range(running):
        world.ask(str(number), new=1000)
    for _ in range(3):
        world.step()
    assert len(world.tier.snapshot()) == residents and world.scheduler.running == running
    world.adapter("small")
    world.adapter("large", size=residents)
    return world
