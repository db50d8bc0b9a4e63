"""Whose turn it is: deficit round robin over tenants, cost in tokens.

Each tenant (an adapter, the bare base, the loader's own work) has a queue. A tenant's turn adds a quantum to its
credit; what the head of its queue costs is paid from it. A tenant with few or small requests never waits behind
another's backlog. Pure.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from graft.server.adapters.readiness import Gate

Item = TypeVar("Item")


@dataclass
class _Queue(Generic[Item]):
    items: deque[tuple[Item, int]] = field(default_factory=deque)
    credit: int = 0


class FairQueue(Generic[Item]):
    """An item's cost is paid when it is popped."""

    def __init__(self, quantum: int):
        self._quantum = quantum
        self._queues: OrderedDict[Hashable, _Queue[Item]] = OrderedDict()  # whose turn it is comes first
        self._promised: dict[Hashable, None] = {}

    def __len__(self) -> int:
        return sum(len(queue.items) for queue in self._queues.values())

    def push(self, tenant: Hashable, item: Item, cost: int) -> None:
        self._queues.setdefault(tenant, _Queue()).items.append((item, cost))

    def peek(self, gate: Callable[[Item], Gate], *, promised_only: bool = False) -> Item | None:
        """The next item, if its gate is open; `pop` takes it.

        A tenant whose turn it is but whose gate opens soon is passed over and promised to be first when it opens.
        Where the gate is full nobody else may start, so that who holds what is needed runs dry.
        """
        for tenant in self._promised:
            item = self._queues[tenant].items[0][0]
            if gate(item) is Gate.READY:
                self._queues.move_to_end(tenant, last=False)
                return item
        passed = 0
        while passed < len(self._queues) and not promised_only:
            tenant, queue = next(iter(self._queues.items()))
            item, cost = queue.items[0]
            if queue.credit < cost:
                queue.credit += self._quantum
            if queue.credit >= cost:
                state = gate(item)
                if state is not Gate.SOON:
                    return item if state is Gate.READY else None
                self._promised[tenant] = None
                passed += 1
            else:
                passed = 0
            self._queues.move_to_end(tenant)
        return None

    def pop(self) -> Item:
        """Take what `peek` has just shown."""
        tenant, queue = next(iter(self._queues.items()))
        item, cost = queue.items.popleft()
        queue.credit -= cost
        self._promised.pop(tenant, None)
        if not queue.items:
            del self._queues[tenant]  # credit isn't hoarded
        elif queue.credit < queue.items[0][1]:
            self._queues.move_to_end(tenant)
        return item

    def remove(self, item: Item) -> bool:
        """Take an item out wherever it waits; False where it doesn't."""
        for tenant, queue in self._queues.items():
            for entry in queue.items:
                if entry[0] is item:
                    queue.items.remove(entry)
                    if not queue.items:
                        del self._queues[tenant]
                        self._promised.pop(tenant, None)
                    return True
        return False
