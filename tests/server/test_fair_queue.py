"""Fair queueing: shares follow weights and costs, nobody waits for what another needs, and the queue keeps its counts."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.server.fair_queue import FairQueue
from graft.server.fair_turns import RankedTurns, Turns
from tests.server.adapters.test_device import calls_of


class Gates:
    """Lines that may start; items are (client, line, number)."""

    def __init__(self, *closed):
        self.closed = set(closed)
        self.wanted = []

    def ready(self, item):
        return item[1] not in self.closed

    def want(self, item):
        self.wanted.append(item)


def pushed(queue, client, line="base", count=1, cost=1.0, weight=1.0, priority=0):
    for number in range(count):
        queue.push(client, line, (client, line, number), cost, weight, priority)


def taken(queue, gates=None):
    gates = gates or Gates()
    item = queue.peek(gates.ready, gates.want)
    if item is not None:
        assert queue.pop() == item
    return item


def test_a_line_that_can_not_start_is_passed_over_wanted_once_and_first_when_it_can():
    queue, gates = FairQueue(), Gates("cold")
    pushed(queue, "one", "cold", 2)
    pushed(queue, "one", "warm", 3)
    assert taken(queue, gates) == ("one", "warm", 0)
    assert taken(queue, gates) == ("one", "warm", 1)
    assert gates.wanted == [("one", "cold", 0)]
    gates.closed.clear()
    queue.wake("cold")
    assert [taken(queue, gates) for _ in range(3)] == [("one", "cold", 0), ("one", "warm", 2), ("one", "cold", 1)]


def test_nobody_waits_for_what_another_client_needs():
    queue, gates = FairQueue(), Gates("full")
    pushed(queue, "large", "full", 5)
    pushed(queue, "other")
    assert taken(queue, gates) == ("other", "base", 0)
    assert taken(queue, gates) is None and len(queue) == 5


def test_a_line_that_is_woken_too_early_is_wanted_again():
    queue, gates = FairQueue(), Gates("cold")
    pushed(queue, "one", "cold")
    assert taken(queue, gates) is None
    queue.wake("cold")
    assert taken(queue, gates) is None
    assert len(gates.wanted) == 2


def test_a_backlog_does_not_delay_another_client():
    queue = FairQueue()
    pushed(queue, "flood", "a", 1000, cost=500)
    for _ in range(10):
        taken(queue)
    pushed(queue, "small", "a", 2, cost=500)
    assert [taken(queue)[0] for _ in range(4)].count("small") == 2


@pytest.mark.parametrize("weights", [(1, 1), (3, 1)])
def test_shares_follow_costs_and_weights(weights):
    """Equal tokens for equal weights, not equal requests."""
    queue, draw = FairQueue(), random.Random(1)
    for number in range(2000):
        queue.push("long", "a", ("long", number), 100, weights[0])
        queue.push("short", "a", ("short", number), draw.randint(5, 15), weights[1])
    spent = {"long": 0, "short": 0}
    while spent["short"] < 3000:
        client, _ = queue.peek()
        queue.pop()
        spent[client] += 100 if client == "long" else 10
    assert 0.85 < spent["long"] / spent["short"] * weights[1] / weights[0] < 1.15


def test_within_a_client_adapters_share():
    queue = FairQueue()
    pushed(queue, "one", "many", 100)
    pushed(queue, "one", "few", 2)
    assert [taken(queue)[1] for _ in range(4)].count("few") == 2


def test_what_is_urgent_overtakes_the_same_clients_whatever_it_waits_for():
    queue = FairQueue()
    pushed(queue, "one", "a", 10)
    queue.push("one", "a", "urgent", priority=-1)
    queue.push("one", "b", "most urgent", priority=-2)
    queue.push("one", "b", "whenever", priority=7)
    assert [taken(queue) for _ in range(2)] == ["most urgent", "urgent"]
    assert [taken(queue) for _ in range(11)] == [*(("one", "a", number) for number in range(10)), "whenever"]


def test_nothing_of_one_client_is_urgent_to_another():
    """The order of clients is the same whatever priorities they give, and so are their shares."""
    orders = []
    for priority in (0, -9, 9):
        queue = FairQueue()
        pushed(queue, "plain", "a", 30, cost=3)
        pushed(queue, "heavy", "a", 30, cost=3, weight=2)
        pushed(queue, "eager", "a", 30, cost=3, priority=priority)
        orders.append([taken(queue)[0] for _ in range(90)])
    assert orders[0] == orders[1] == orders[2]


def test_an_urgent_line_that_can_not_start_holds_nothing_up_and_is_first_when_it_can():
    queue, gates = FairQueue(), Gates("cold")
    pushed(queue, "one", "warm", 3)
    pushed(queue, "one", "cold", priority=-1)
    queue.push("one", "cold", ("one", "cold", "later"))
    assert taken(queue, gates) == ("one", "warm", 0)
    gates.closed.clear()
    queue.wake("cold")
    assert [taken(queue, gates) for _ in range(3)] == [("one", "cold", 0), ("one", "cold", "later"), ("one", "warm", 1)]


def test_adapters_of_one_priority_share_whatever_was_urgent_before():
    """What was urgent is on nobody's account: a line that is new has its turn beside one that has waited."""
    queue = FairQueue()
    pushed(queue, "one", "waiting", 20)
    pushed(queue, "one", "urgent", 500, priority=-1)
    for _ in range(500):
        assert taken(queue)[1] == "urgent"
    pushed(queue, "one", "new", 2)
    assert [taken(queue)[1] for _ in range(4)].count("new") == 2


def test_many_priorities_leave_nothing_behind():
    turns = RankedTurns()
    turns.join(-1, "urgent")
    for rank in range(5000):
        turns.join(rank, "cancelled")
        turns.leave(rank, "cancelled")
    assert len(turns._ranks) < 200 and len(turns._turns) == 1 and turns.first() == (-1, "urgent")


def test_an_empty_queue_does_not_forgive_what_was_had_ahead_of_time():
    """Who sends one large request after another is not new each time."""
    queue = FairQueue()
    pushed(queue, "steady", "a", 100, cost=10)
    spent = {"large": 0, "steady": 0}
    pushed(queue, "large", "a", cost=100)
    for _ in range(44):
        client = taken(queue)[0]
        spent[client] += 100 if client == "large" else 10
        if client == "large":
            pushed(queue, "large", "a", cost=100)
    assert 0.7 < spent["large"] / spent["steady"] < 1.6


def test_who_is_first_of_many_newcomers_takes_no_longer_to_know_than_of_few():
    counts = []
    for clients in (10, 2000):
        queue = FairQueue()
        for number in range(clients):
            pushed(queue, number)
        counts.append(calls_of(lambda: queue.peek(newcomers=True) and queue.pop()))  # noqa: B023
        assert queue.peek(newcomers=True) == (1, "base", 0)
    assert counts[1] - counts[0] <= 3, counts


def test_clients_that_come_and_go_leave_nothing_behind():
    queue = FairQueue()
    for number in range(5000):
        pushed(queue, number)
        queue.remove(number, "base", (number, "base", 0))
    assert len(queue._newcomers._heap) < 200 and not queue._clients


def test_newcomers_hold_nothing():
    queue = FairQueue()
    pushed(queue, "old", "a", 3)
    taken(queue)
    pushed(queue, "new", "a")
    assert queue.peek(newcomers=True) == ("new", "a", 0)
    queue.pop()
    assert queue.peek(newcomers=True) is None
    queue.release("old")
    assert queue.peek(newcomers=True) == ("old", "a", 1)


operations = st.lists(
    st.tuples(
        st.sampled_from(["push", "take", "remove", "release", "close", "open"]), st.integers(0, 3), st.integers(0, 2)
    ),
    max_size=120,
)


@settings(max_examples=200, deadline=None)
@given(operations)
def test_against_a_plain_list(script):
    """Whatever is done in whatever order: everything that may start comes out, once, by priority, and lines keep their order."""
    queue, gates = FairQueue(), Gates()
    waiting, held = [], []
    for number, (what, client, line) in enumerate(script):
        match what:
            case "push":
                item = (client, line, number, number % 3 - 1)
                queue.push(client, line, item, cost=1 + number % 3, priority=item[3])
                waiting.append(item)
            case "take":
                item = taken(queue, gates)
                able = [one for one in waiting if gates.ready(one)]
                assert (item is None) == (not able)
                if item:
                    assert item[3] == min(one[3] for one in able if one[0] == item[0])
                    assert item == next(one for one in waiting if (*one[:2], one[3]) == (*item[:2], item[3]))
                    waiting.remove(item)
                    held.append(item)
            case "remove" if waiting:
                item = waiting.pop(number % len(waiting))
                queue.remove(*item[:2], item, item[3])
            case "release" if held:
                queue.release(held.pop()[0])
            case "close":
                gates.closed.add(line)
            case "open":
                gates.closed.discard(line)
                queue.wake(line)
        assert len(queue) == len(waiting)
        newcomer = queue.peek(gates.ready, gates.want, newcomers=True)
        able = {one[0] for one in waiting if gates.ready(one)} - {one[0] for one in held}
        assert (newcomer is None) == (not able)
        assert newcomer is None or newcomer[0] == min(able, key=queue._turns.tag)
    for line in range(3):
        gates.closed.discard(line)
        queue.wake(line)
    while (item := taken(queue, gates)) is not None:
        waiting.remove(item)
        held.append(item)
    assert not waiting
    for client, *_ in held:
        queue.release(client)
    assert not queue._clients and not queue._newcomers and not queue._parked


def test_a_stream_of_new_clients_holds_nobody_up():
    queue = FairQueue()
    pushed(queue, "old", "a", 4, cost=100)
    order = []
    for number in range(60):
        pushed(queue, f"new {number}", "a", cost=100)
        order.append(taken(queue)[0])
    assert order.count("old") == 4


def test_debts_of_many_clients_are_forgotten_when_they_are_settled():
    turns = Turns()
    for number in range(5000):
        turns.join(number)
        turns.pay(number, 1.0)
        turns.leave(number)
    assert len(turns._debts) < 200 and len(turns._in._heap) < 200


def test_a_line_whose_asking_fails_is_asked_for_again():
    queue, asked = FairQueue(), []

    def want(item):
        asked.append(item)
        if item == "first":
            raise RuntimeError("as a fault would")

    queue.push("one", "a", "first")
    queue.push("two", "a", "second")
    with pytest.raises(RuntimeError):
        queue.peek(lambda item: False, want)
    queue.remove("one", "a", "first")
    assert queue.peek(lambda item: False, want) is None
    assert asked == ["first", "second"]
