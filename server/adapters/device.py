"""The device tier: which adapters are in the runner and have their virtual rows in the cache.

Bringing one in: its detours are prepared on a loader's thread, added to the runner between steps, its virtual rows
written or run once through the base, its proof made; then its requests may start. The least recently used idle
adapter makes room. All but `prepare` happens on the engine's thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor

from graft.hub.adapters.probe import Verdict
from graft.hub.adapters.serving_forms import CacheRows
from graft.hub.errors import GraftError
from graft.server.adapters.host import Loaded
from graft.server.adapters.readiness import NO_ROWS, Gate, VirtualRows
from graft.server.cache.blocks import BlockPool
from graft.server.cache.step import BLOCK_ROWS
from graft.server.errors import CapacityError
from graft.server.runners.protocol import Prepared, Runner

VIRTUAL_SHARE = 4  # at most 1/4 of the cache's blocks holds virtual rows, so that requests always find room


class State(Enum):
    PREPARING = "preparing"  # on a loader's thread
    ROWS = "rows"  # in the runner; its virtual rows are not in the cache yet
    PROVING = "proving"  # its proof is under way
    READY = "ready"


@dataclass(eq=False)
class Resident:
    """An adapter on the device, or on its way there."""

    loaded: Loaded
    bytes: int
    state: State = State.PREPARING
    virtual: VirtualRows = NO_ROWS
    promised: bool = False  # to a request whose turn has come and that has not started yet

    @property
    def digest(self) -> str:
        return self.loaded.digest


class AdapterWork(Protocol):
    """What residency asks of the engine."""

    def prepare(self, loaded: Loaded, done: Callable[[Prepared | GraftError], None]) -> None:
        """Prepare detours elsewhere; call `done` on the engine's thread with them or a GraftError."""
        ...

    def take_blocks(self, n: int, digest: str) -> list[int]:
        """Cache blocks for an adapter's given rows, if need be from those who run."""
        ...

    def run_rows(self, resident: Resident, rows: Tensor, done: Callable[[list[int] | GraftError], None]) -> None:
        """Run a soft prompt's rows [P, H] through the base; `done` gets the blocks that hold it, or what went wrong."""
        ...

    def prove(self, resident: Resident, done: Callable[[GraftError | None], None]) -> None:
        """Prove that an adapter does what it did in training; `done` gets what is wrong, or None."""
        ...

    def is_running(self, digest: str) -> bool:
        """Whether the scheduler has admitted a sequence of the adapter."""
        ...

    def refused(self, digest: str, error: GraftError) -> None:
        """The adapter can't be served: fail its requests, soon but not within this call."""
        ...


class DeviceTier:
    """Used by the engine's thread alone. `pinned`: digests that stay."""

    def __init__(self, runner: Runner, blocks: BlockPool, work: AdapterWork, *, budget_bytes: int, pinned: set[str]):
        self.budget_bytes = budget_bytes
        self.evictions = 0
        self._runner = runner
        self._blocks = blocks
        self._work = work
        self._pinned = pinned
        self._proven: dict[str, Verdict] = {}
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first

    @property
    def bytes(self) -> int:
        return sum(resident.bytes for resident in self._residents.values())

    @property
    def virtual_blocks(self) -> int:
        return sum(_blocks_of(resident.loaded) for resident in self._residents.values())

    def snapshot(self) -> list[Resident]:
        return list(self._residents.values())

    def blocks_of(self, adapters: Iterable[Loaded]) -> int:
        """Cache blocks that their virtual rows take."""
        return sum(_blocks_of(loaded) for loaded in adapters)

    def check(self, loaded: Loaded) -> None:
        """Raises CapacityError for an adapter that could never come in."""
        if loaded.bytes > self.budget_bytes:
            raise CapacityError(
                f"This adapter takes {loaded.bytes} bytes, all adapters on the device together may take "
                f"{self.budget_bytes} (--adapter-device-bytes)."
            )
        if _blocks_of(loaded) > self.virtual_limit:
            raise CapacityError(
                f"This adapter's {loaded.virtual_rows} virtual tokens are too many for a KV cache of "
                f"{self._blocks.count * BLOCK_ROWS} rows (--kv-bytes)."
            )

    def gate(self, loaded: Loaded) -> tuple[Gate, VirtualRows]:
        """Whether a sequence of the adapter may be admitted now; brings the adapter in if there is room."""
        resident = self._residents.get(loaded.digest)
        if resident is None:
            if not self._bring(loaded, only_unwanted=False):
                return Gate.FULL, NO_ROWS
            resident = self._residents[loaded.digest]
        self._residents.move_to_end(loaded.digest)
        resident.promised = resident.state is not State.READY
        return (Gate.SOON if resident.promised else Gate.READY), resident.virtual

    def prefetch(self, loaded: Loaded) -> None:
        """A request has been queued: bring its adapter in, at the cost only of adapters that nobody waits for."""
        if loaded.digest in self._residents:
            self._residents.move_to_end(loaded.digest)
        else:
            self._bring(loaded, only_unwanted=True)

    def reclaim(self, keep: str | None) -> bool:
        """Free the virtual rows of an idle adapter other than `keep`; False where there is none."""
        holders = (r for r in self._residents.values() if r.virtual.blocks and r.digest != keep and self._idle(r))
        victim = next(holders, None)
        if victim is not None:
            self._evict(victim)
        return victim is not None

    def drop(self, digest: str) -> bool:
        """Evict an adapter on request; False while it is busy."""
        resident = self._residents.get(digest)
        if resident is not None and (resident.state is not State.READY or self._work.is_running(digest)):
            return False
        if resident is not None:
            self._evict(resident)
        return True

    @property
    def virtual_limit(self) -> int:
        return max(1, (self._blocks.count - 1) // VIRTUAL_SHARE)

    def _idle(self, resident: Resident) -> bool:
        return (
            resident.state is State.READY
            and resident.digest not in self._pinned
            and not (resident.promised and resident.loaded.users)
            and not self._work.is_running(resident.digest)
        )

    def _bring(self, loaded: Loaded, *, only_unwanted: bool) -> bool:
        """Start to bring an adapter in; False where there is no room for it now."""
        rows = _blocks_of(loaded)
        victims = []
        idle = iter([r for r in self._residents.values() if self._idle(r) and not (only_unwanted and r.loaded.users)])
        size, blocks = self.bytes + loaded.bytes, self.virtual_blocks + rows
        while size > self.budget_bytes or blocks > self.virtual_limit:
            victim = next(idle, None)
            if victim is None:
                if not only_unwanted:
                    self._refuse_hopeless(loaded)
                return False
            victims.append(victim)
            size -= victim.bytes
            blocks -= _blocks_of(victim.loaded)
        for victim in victims:
            self._evict(victim)
        resident = self._residents[loaded.digest] = Resident(loaded, loaded.bytes)
        self._work.prepare(loaded, lambda made: self._add_to_runner(resident, made))
        return True

    def _refuse_hopeless(self, loaded: Loaded) -> None:
        """Where only pinned adapters, idle ones, are left, waiting would never end."""
        if all(
            r.digest in self._pinned and r.state is State.READY and not self._work.is_running(r.digest)
            for r in self._residents.values()
        ):
            message = "Pinned adapters fill the device: unpin one, or raise --adapter-device-bytes."
            self._work.refused(loaded.digest, CapacityError(message))

    def _add_to_runner(self, resident: Resident, made: Prepared | GraftError) -> None:
        if isinstance(made, GraftError):
            self._refuse(resident, made)
            return
        self._runner.add(resident.digest, made)
        resident.bytes = made.bytes
        resident.state = State.ROWS
        rows = resident.loaded.rows
        if rows is None:
            self._start_proof(resident, [], 0)
        elif isinstance(rows, CacheRows):
            self._place_given(resident, rows)
        else:
            count = len(rows.rows)
            self._work.run_rows(resident, rows.rows, lambda blocks: self._start_proof(resident, blocks, count))

    def _place_given(self, resident: Resident, rows: CacheRows) -> None:
        blocks = self._work.take_blocks(_blocks_of(resident.loaded), resident.digest)
        self._runner.cache.write(rows, blocks)
        self._start_proof(resident, blocks, rows.text_start)

    def _start_proof(self, resident: Resident, blocks: list[int] | GraftError, text_start: int) -> None:
        if isinstance(blocks, GraftError):
            self._refuse(resident, blocks)
            return
        resident.virtual = VirtualRows(resident.loaded.virtual_rows, text_start, tuple(blocks))
        if resident.digest in self._proven:
            resident.loaded.case = resident.loaded.case.with_verdict(self._proven[resident.digest])
            resident.state = State.READY
            return
        resident.state = State.PROVING
        self._work.prove(resident, lambda wrong: self._end_proof(resident, wrong))

    def _end_proof(self, resident: Resident, wrong: GraftError | None) -> None:
        if wrong is not None:
            self._refuse(resident, wrong)
            return
        verdict = resident.loaded.case.verdict
        assert verdict is not None  # the proof has closed the case
        self._proven[resident.digest] = verdict
        resident.state = State.READY

    def _refuse(self, resident: Resident, error: GraftError) -> None:
        self._evict(resident)
        self._work.refused(resident.digest, error)

    def _evict(self, resident: Resident) -> None:
        del self._residents[resident.digest]
        if resident.state is not State.PREPARING:
            self._runner.remove(resident.digest)
        self._blocks.release(resident.virtual.blocks)
        self.evictions += 1


def _blocks_of(loaded: Loaded) -> int:
    return -(-loaded.virtual_rows // BLOCK_ROWS)
