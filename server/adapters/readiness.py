"""Whether an adapter's requests may start, and its rows that lie in the cache before their text."""

from dataclasses import dataclass
from enum import Enum

from graft.server.cache.step import BLOCK_ROWS


class Gate(Enum):
    """Whether an item may start."""

    READY = "ready"
    SOON = "soon"  # what it needs is on its way: others may go first
    FULL = "full"  # what it needs is held by those who run: nobody may go first, or it might wait for ever


@dataclass(frozen=True)
class VirtualRows:
    """An adapter's rows before the text, in the cache already: whole blocks shared by its requests, and perhaps a
    last, partial block, which is copied for each request and never written by one."""

    count: int
    text_start: int  # position of the first row of the text
    blocks: tuple[int, ...]

    @property
    def whole(self) -> tuple[int, ...]:
        return self.blocks[: self.count // BLOCK_ROWS]

    @property
    def partial(self) -> int | None:
        return self.blocks[-1] if self.count % BLOCK_ROWS else None


NO_ROWS = VirtualRows(0, 0, ())
