"""What is next, fairly: over clients by their weights, then within a client by priority, then over its lines. Pure.

A line is what of one client's waits for the same thing: its requests for one adapter, which of one priority may not overtake
each other. An item whose line can't start yet is passed over, and its line is promised to be first of its equals when it can:
nobody waits for what somebody else needs. A priority is among a client's own items, and moves no other client's.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from graft.server.fair_turns import Order, RankedTurns, Turns

Item = TypeVar("Item", bound=Hashable)


@dataclass(eq=False)
class _Client(Generic[Item]):
    """`holds`: how many of its items have been popped and not been released. `lanes`: of one priority and line each."""

    weight: float = 1.0
    holds: int = 0
    lanes: dict[tuple[int, Hashable], OrderedDict[Item, float]] = field(default_factory=dict)  # items with their costs
    turns: RankedTurns[Hashable] = field(default_factory=RankedTurns)  # lines that may start, as far as is known


class FairQueue(Generic[Item]):
    """An item's cost is paid when it is popped; costs and weights are in any unit. Operations take O(log n)."""

    def __init__(self) -> None:
        self._clients: dict[Hashable, _Client[Item]] = {}
        self._turns: Turns[Hashable] = Turns()  # clients with a line that may start
        self._newcomers: Order[Hashable] = Order()  # those of them that hold nothing, by the same tags
        # Line -> client and priority of every lane of that line that can't start yet.
        self._parked: dict[Hashable, dict[tuple[Hashable, int], None]] = {}
        self._shown: tuple[Hashable, int, Hashable] | None = None
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Item]:
        return (item for client in self._clients.values() for lane in client.lanes.values() for item in lane)

    def push(
        self,
        client: Hashable,
        line: Hashable,
        item: Item,
        cost: float = 1.0,
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        """Last of its priority in its line. `weight`: the client's, from now on. `priority`: lower ones go first."""
        own = self._clients.setdefault(client, _Client())
        own.weight = weight
        if (priority, line) not in own.lanes:
            own.lanes[priority, line] = OrderedDict()
            self._join(client, priority, line)
        own.lanes[priority, line][item] = cost
        self._length += 1

    def peek(
        self,
        ready: Callable[[Item], bool] = lambda item: True,
        want: Callable[[Item], None] = lambda item: None,
        *,
        newcomers: bool = False,
    ) -> Item | None:
        """The next item that may start; `pop` takes it. `newcomers`: only of clients that hold nothing.

        `ready(item)`: whether its line may start. Where it may not `want(item)` is called, and the line is passed over until
        `wake` is called for it.
        """
        while self._newcomers if newcomers else self._turns:
            client = self._newcomers.first() if newcomers else self._turns.first()
            own = self._clients[client]
            while own.turns:
                priority, line = own.turns.first()
                item = next(iter(own.lanes[priority, line]))
                if ready(item):
                    self._shown = client, priority, line
                    return item
                own.turns.leave(priority, line)
                self._parked.setdefault(line, {})[client, priority] = None
                self._ask_for(line, item, want)  # last, for it may wake the line
            if client in self._turns:
                self._leave(client)
        return None

    def _ask_for(self, line: Hashable, item: Item, want: Callable[[Item], None]) -> None:
        try:
            want(item)
        except Exception:
            self.wake(line)  # nobody was asked to do so: others in it ask again
            raise

    def pop(self) -> Item:
        """Take what `peek` has just shown."""
        assert self._shown is not None
        (client, priority, line), self._shown = self._shown, None
        own = self._clients[client]
        item, cost = own.lanes[priority, line].popitem(last=False)
        own.turns.pay(priority, line, cost)
        self._turns.pay(client, cost / own.weight)
        self._length -= 1
        self.hold(client)
        self._close_empty(client, priority, line)
        return item

    def remove(self, client: Hashable, line: Hashable, item: Item, priority: int = 0) -> None:
        """Take an item out, wherever in its line it is."""
        del self._clients[client].lanes[priority, line][item]
        self._length -= 1
        self._close_empty(client, priority, line)
        self._forget_idle(client)

    def wake(self, line: Hashable) -> None:
        """Lines of that name may start, as far as is known."""
        for client, priority in self._parked.pop(line, ()):
            self._join(client, priority, line, promised=True)

    def hold(self, client: Hashable) -> None:
        """A client holds one thing more than it has popped."""
        self._clients.setdefault(client, _Client()).holds += 1
        self._newcomers.discard(client)

    def release(self, client: Hashable) -> None:
        """One of the things that a client holds has come back."""
        own = self._clients[client]
        own.holds -= 1
        if not own.holds and client in self._turns:
            self._newcomers.put(client, self._turns.tag(client))
        self._forget_idle(client)

    def holds(self, client: Hashable) -> int:
        """How much a client holds of what was popped."""
        return self._clients[client].holds if client in self._clients else 0

    def _join(self, client: Hashable, priority: int, line: Hashable, *, promised: bool = False) -> None:
        own = self._clients[client]
        own.turns.join(priority, line, promised=promised)
        self._turns.join(client, promised=promised)
        if not own.holds and client not in self._newcomers:
            self._newcomers.put(client, self._turns.tag(client))

    def _leave(self, client: Hashable) -> None:
        self._turns.leave(client)
        self._newcomers.discard(client)

    def _close_empty(self, client: Hashable, priority: int, line: Hashable) -> None:
        """Forget a lane that has run dry."""
        own = self._clients[client]
        if own.lanes[priority, line]:
            return
        del own.lanes[priority, line]
        if (priority, line) in own.turns:
            own.turns.leave(priority, line)
        else:
            self._unpark(client, priority, line)
        if not own.turns and client in self._turns:
            self._leave(client)

    def _unpark(self, client: Hashable, priority: int, line: Hashable) -> None:
        del self._parked[line][client, priority]
        if not self._parked[line]:
            del self._parked[line]

    def _forget_idle(self, client: Hashable) -> None:
        own = self._clients[client]
        if not own.holds and not own.lanes:
            del self._clients[client]
