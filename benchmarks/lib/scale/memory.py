"""A replica's memory for adapters: the least recently used one that nobody uses makes room. Shared by both worlds."""

from collections import Counter, OrderedDict


class Memory:
    """Room in bytes, or (as Serve's multiplexing) in adapters, which then leave whether or not they are in use."""

    def __init__(self, room: int, most: int | None = None) -> None:
        self.room, self.most, self.taken = room, most, 0
        self.held: OrderedDict[int, int] = OrderedDict()  # adapter -> bytes, the least recently used first
        self._users: Counter[int] = Counter()

    def touch(self, adapter: int) -> bool:
        """Whether it is here; then it has been used just now."""
        if adapter in self.held:
            self.held.move_to_end(adapter)
            return True
        return False

    def use(self, adapter: int) -> None:
        """A request for it is here."""
        self._users[adapter] += 1

    def release(self, adapter: int) -> None:
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]

    def bring(self, adapter: int, size: int) -> list[int] | None:
        """Make room and take it. Returns who left; None where there is no room for now."""
        leaving = self._leaving(size)
        for other in leaving or ():
            self.taken -= self.held.pop(other)
        if leaving is not None:
            self.held[adapter] = size
            self.taken += size
        return leaving

    def _leaving(self, size: int) -> list[int] | None:
        if self.most is not None:
            return [next(iter(self.held))] if len(self.held) >= self.most else []
        lacking, leaving = self.taken + size - self.room, []
        for other, bytes_ in self.held.items():
            if lacking <= 0:
                break
            if other not in self._users:
                leaving.append(other)
                lacking -= bytes_
        return leaving if lacking <= 0 else None
