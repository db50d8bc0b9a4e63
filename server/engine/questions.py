"""What is asked of the engine's thread about adapters in memory, and what it is told to do with them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft.server.engine.messages import Ask, EngineSide

if TYPE_CHECKING:
    from graft.server.adapters.loaded import Loaded

PINNED_SHARE = 2  # pins may take half of a budget, so that the other adapters can always come and go


@dataclass(frozen=True)
class EngineStats:
    """Between two steps. `virtual_blocks`: of `blocks_used`, those that hold adapters' virtual rows."""

    steps: int
    running: int
    waiting: int
    blocks: int
    blocks_used: int
    virtual_blocks: int


@dataclass(frozen=True, eq=False)
class Stats(Ask[EngineStats]):
    """How is it doing?"""

    def find(self, engine: EngineSide) -> EngineStats:
        return EngineStats(
            engine.steps,
            engine.scheduler.running,
            engine.scheduler.waiting,
            engine.blocks.count - 1,
            engine.blocks.used,
            sum(len(one.virtual.blocks) for one in engine.residency.snapshot()),
        )


@dataclass(frozen=True, eq=False)
class Unload(Ask[bool]):
    """Take an adapter out of memory, pinned or not; False while it is in use."""

    loaded: "Loaded"

    def find(self, engine: EngineSide) -> bool:
        digest = self.loaded.digest
        if self.loaded.users or not engine.residency.drop(digest):
            return False
        _pin(engine, self.loaded, False)
        engine.loader.drop(digest)
        return True


@dataclass(frozen=True, eq=False)
class Pin(Ask[bool]):
    """Keep an adapter in memory, or let it go again; False where pins would take more than their share."""

    loaded: "Loaded"
    pinned: bool

    def find(self, engine: EngineSide) -> bool:
        return _pin(engine, self.loaded, self.pinned)


def _pin(engine: EngineSide, loaded: "Loaded", pinned: bool) -> bool:
    host, device = engine.loader, engine.residency
    if pinned:
        together = [one for one in host.snapshot() if one.digest in device.pinned | {loaded.digest}]
        for taken, most in (
            (sum(one.bytes for one in together), host.budget_bytes),
            (sum(one.device_bytes for one in together), device.budget_bytes),
            (sum(one.virtual_blocks for one in together), device.virtual_limit),
        ):
            if PINNED_SHARE * taken > most:
                return False
    device.pin(loaded.digest, pinned)
    host.keep(device.pinned)
    return True
