"""Whether an adapter's requests may start, as the scheduler asks it, and its rows that lie in the cache before their text."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from graft.server.cache.step import BLOCK_ROWS


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


class Adapters(Protocol):
    """What the scheduler asks and says of the adapters that its sequences need, by digest. Each takes O(1)."""

    def ready(self, digest: str) -> bool:
        """Whether a sequence may start now. Changes nothing."""
        ...

    def virtual(self, digest: str) -> VirtualRows:
        """The virtual rows of an adapter that is ready."""
        ...

    def want(self, digest: str, client: Hashable) -> None:
        """A sequence's turn has come: its adapter is brought in, and stays until it has started. Once a turn is enough."""
        ...

    def count(self, digest: str, *, waiting: int = 0, running: int = 0) -> None:
        """So many more of its sequences wait to start, or run."""
        ...

    def reclaim(self, keep: str | None) -> bool:
        """Free cache blocks that an idle adapter other than `keep` holds; False where there is none."""
        ...


class NoAdapters:
    """Sequences need none."""

    def ready(self, digest: str) -> bool:
        return True

    def virtual(self, digest: str) -> VirtualRows:
        return NO_ROWS

    def want(self, digest: str, client: Hashable) -> None:
        pass

    def count(self, digest: str, *, waiting: int = 0, running: int = 0) -> None:
        pass

    def reclaim(self, keep: str | None) -> bool:
        return False
