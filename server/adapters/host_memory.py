"""Adapters in host memory, and who keeps them there: each is counted until the last one lets go of it. Pure.

Sums and the order of those that nobody keeps are carried along: an operation takes as long with a thousand adapters as with ten,
and what it drops.
"""

from collections import OrderedDict
from collections.abc import Iterator

from graft.server.adapters.loaded import Loaded


class HostMemory:
    """Used with a lock; `bytes` may be read without."""

    def __init__(self) -> None:
        self.bytes = 0  # of all that is there: those too that are forgotten and still used, and what is on its way
        self._known: dict[str, Loaded] = {}  # by digest
        self._idle: OrderedDict[str, Loaded] = OrderedDict()  # that nobody keeps, least recently used first
        self._pinned: frozenset[str] = frozenset()  # digests
        self._sizes: dict[Loaded, int] = {}  # as they are counted

    def __iter__(self) -> Iterator[Loaded]:
        return iter(self._known.values())

    def get(self, digest: str) -> Loaded | None:
        return self._known.get(digest)

    def expect(self, size: int) -> None:
        """So many bytes are taken by what is on its way (below 0: it is there, or will not come)."""
        self.bytes += size

    def put(self, loaded: Loaded) -> None:
        """In the place of whatever has its digest."""
        self.forget(loaded.digest)
        self._known[loaded.digest] = loaded
        self._sizes[loaded] = 0
        self.recount(loaded)
        self._file(loaded)

    def hold(self, loaded: Loaded) -> None:
        loaded.users += 1
        self._file(loaded)

    def release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        self.recount(loaded)
        self._file(loaded)

    def recount(self, loaded: Loaded) -> None:
        """It may have become smaller, or larger."""
        if loaded in self._sizes:
            size = loaded.host_bytes
            self.bytes += size - self._sizes[loaded]
            self._sizes[loaded] = size

    def pin(self, digests: frozenset[str]) -> None:
        """These stay, whoever uses them, and no others."""
        changed, self._pinned = self._pinned ^ digests, digests
        for digest in changed & self._known.keys():
            self._file(self._known[digest])

    def forget(self, digest: str) -> None:
        """It is not found any more; it is counted as long as somebody uses it."""
        loaded = self._known.pop(digest, None)
        if loaded is not None:
            self._file(loaded)

    def is_pinned(self, digest: str) -> bool:
        return digest in self._pinned

    def staying(self) -> int:
        """Bytes that are left once nobody uses what is forgotten. Takes as long as there are adapters."""
        return self.bytes - sum(size for one, size in self._sizes.items() if self._known.get(one.digest) is not one)

    def shrink(self, budget: int) -> None:
        """Drop what nobody keeps until the budget holds: where it does not hold afterwards, all that is left is kept."""
        while self.bytes > budget and self._idle:
            self.forget(next(iter(self._idle)))

    def _file(self, loaded: Loaded) -> None:
        """See who keeps it."""
        digest = loaded.digest
        known = self._known.get(digest) is loaded
        if known and not loaded.users and digest not in self._pinned:
            self._idle[digest] = loaded
        elif self._idle.get(digest) is loaded:
            del self._idle[digest]
        if not known and not loaded.users:
            self.bytes -= self._sizes.pop(loaded, 0)
