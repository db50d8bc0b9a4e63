"""An adapter on the device, or on its way there, and what the device tier asks of the engine for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor

from graft.hub.errors import GraftError
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.readiness import NO_ROWS, VirtualRows


class State(Enum):
    PREPARING = "preparing"  # on a loader's thread
    ROWS = "rows"  # in the runner; its virtual rows are not in the cache yet
    PROVING = "proving"  # its proof is under way
    READY = "ready"


@dataclass(eq=False)
class Resident:
    """An adapter on the device, or on its way there. `blocks`: of the cache, that its virtual rows take, or will take.

    `arriving`: its copy in host memory, until it is in: then the device needs no other than its own. `held`: it stays there for that.
    """

    digest: str
    bytes: int
    blocks: int
    arriving: Loaded | None
    state: State = State.PREPARING
    virtual: VirtualRows = NO_ROWS
    since: float = 0.0  # when it became ready
    held: bool = False

    @classmethod
    def of(cls, loaded: Loaded) -> "Resident":
        """Of what is about to come in."""
        return cls(loaded.digest, loaded.device_bytes, loaded.virtual_blocks, loaded)

    @property
    def loaded(self) -> Loaded:
        """Of one that is on its way."""
        assert self.arriving is not None
        return self.arriving

    def hold(self, work: "AdapterWork") -> None:
        work.hold(self.loaded)
        self.held = True

    def let_go(self, work: "AdapterWork") -> None:
        """Of the copy in host memory: it is in, or will not come."""
        if self.arriving is not None and self.held:
            work.release(self.arriving)
        self.arriving = None


class AdapterWork(Protocol):
    """What the device tier asks of the engine."""

    def prepare(self, resident: Resident) -> None:
        """Prepare its detours elsewhere; `add_to_runner` gets them, or a GraftError, on the engine's thread."""
        ...

    def hold(self, loaded: Loaded) -> None:
        """Its copy in host memory stays until `release`."""
        ...

    def release(self, loaded: Loaded) -> None: ...

    def take_blocks(self, n: int, digest: str) -> list[int]:
        """Cache blocks for an adapter's given rows, if need be from those who run."""
        ...

    def run_rows(self, resident: Resident, rows: Tensor, done: Callable[[list[int] | GraftError], None]) -> None:
        """Run a soft prompt's rows [P, H] through the base; `done` gets the blocks that hold it, or what went wrong."""
        ...

    def prove(self, resident: Resident, done: Callable[[GraftError | None], None]) -> None:
        """Prove that an adapter does what it did in training; `done` gets what is wrong, or None."""
        ...

    def ready(self, digest: str) -> None:
        """Requests of the adapter may start, or are to be asked about again."""
        ...

    def tokens_left(self) -> Mapping[str, int]:
        """By digest of those that requests run with: rows that one of these requests may still take, at most."""
        ...

    def refused(self, digest: str, error: GraftError) -> None:
        """The adapter can't be served: fail its requests, soon but not within this call."""
        ...
