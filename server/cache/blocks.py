"""Which cache blocks are free, used or shared: reference counts, prefix sharing, least recently used eviction.

Pure bookkeeping: holds no keys and values (cache.py does) and knows no requests. A full block can be found again by
a chain hash over its owner's identity (an adapter's digest, or the base) and every token up to its end, so blocks are
never shared across owners.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from graft.server.cache.step import TRASH_BLOCK


def root_hash(owner: str | None) -> bytes:
    """Where an owner's chain begins. `owner`: an adapter's digest, None for the bare base."""
    return blake2b(b"base" if owner is None else b"adapter " + owner.encode(), digest_size=16).digest()


def chain_hashes(parent: bytes, tokens: Sequence[int], ends: Iterable[int]) -> Iterator[bytes]:
    """The hashes of blocks that end after so many of the tokens, which follow everything that `parent` stands for."""
    data = array("i", tokens)
    packed, size, start = data.tobytes(), data.itemsize, 0
    for end in ends:
        parent = blake2b(parent + packed[start * size : end * size], digest_size=16).digest()
        yield parent
        start = end


@dataclass(frozen=True, slots=True)
class Found:
    """Blocks that are still there. `idle`: those of them that nobody uses, which are available only until found."""

    count: int
    idle: int


class BlockPool:
    """Hands out blocks 1..count-1; block 0 is the trash. Used by the engine's thread alone."""

    def __init__(self, count: int):
        self.count = count
        self.hits = 0  # blocks found again
        self.misses = 0  # full prompt blocks that had to be computed
        self._free = list(range(count - 1, TRASH_BLOCK, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # findable, used by nobody; least recently used first
        self._users = [0] * count
        self._hash: dict[int, bytes] = {}
        self._findable: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Blocks that `take` could hand out."""
        return len(self._free) + len(self._idle)

    @property
    def used(self) -> int:
        return self.count - 1 - self.available

    def take(self, n: int) -> list[int]:
        """n blocks with one user each. Raises MemoryError, changing nothing, when there are fewer."""
        if n > self.available:
            raise MemoryError(f"{n} cache blocks wanted, {self.available} available")
        taken = []
        for _ in range(n):
            block = self._free.pop() if self._free else self._evict()
            self._users[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """One user less for each. Released back to front, so that a prefix outlives what follows it."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                if block in self._hash:
                    self._idle[block] = None
                else:
                    self._free.append(block)
            elif self._users[block] < 0:
                raise ValueError(f"block {block} was released more often than taken")

    def find(self, hashes: Sequence[bytes]) -> list[int]:
        """The longest run of blocks from the first hash on that are still there; each gets one more user."""
        blocks = []
        for key in hashes:
            block = self._findable.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._users[block] += 1
            blocks.append(block)
        return blocks

    def peek(self, hashes: Sequence[bytes]) -> Found:
        """What `find` would find, changing nothing."""
        count = next((i for i, key in enumerate(hashes) if key not in self._findable), len(hashes))
        return Found(count, idle=sum(self._findable[key] in self._idle for key in hashes[:count]))

    def publish(self, block: int, key: bytes) -> None:
        """Make a block in use findable. Where an equal one is already, this one stays private."""
        if key not in self._findable and block not in self._hash:
            self._findable[key] = block
            self._hash[block] = key

    def withdraw(self, blocks: Sequence[int]) -> None:
        """Make blocks unfindable: their content was never computed."""
        for block in blocks:
            key = self._hash.pop(block, None)
            if key is not None:
                del self._findable[key]
                if block in self._idle:
                    del self._idle[block]
                    self._free.append(block)

    def discrepancy(self, holders: Mapping[int, int]) -> str | None:
        """What does not agree with how many hold each block; None where everything does."""
        unused = [*self._free, *self._idle]
        for block in range(TRASH_BLOCK + 1, self.count):
            if self._users[block] != holders.get(block, 0):
                return f"block {block} counts {self._users[block]} users and has {holders.get(block, 0)}"
        if sorted(unused) != [block for block in range(TRASH_BLOCK + 1, self.count) if not self._users[block]]:
            return f"{len(unused)} blocks are listed as unused, and others are"
        return None

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._findable[self._hash.pop(block)]
        return block
