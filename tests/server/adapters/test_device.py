"""The device tier over a pretended runner and engine: who needs room waits for it, for a bounded time, and nobody else."""

import gc
import random
import sys
from collections import Counter
from types import SimpleNamespace

import pytest

from benchmarks.lib.pretended_engine import Pretended, crowded
from graft.server.adapters.device import HOLD_BACK_S
from graft.server.adapters.resident import State
from graft.server.engine.sequence import StepPlan
from graft.server.errors import BrokenError, CapacityError


@pytest.fixture
def full():
    """Two adapters have all the room, and run for long; a third finds none."""
    world = Pretended(room=2)
    for digest in "abc":
        world.adapter(digest)
    world.running = [world.ask("a", new=500), world.ask("b", new=900)]
    world.step()
    world.third = world.ask("c")
    return world


def test_one_without_room_stops_neither_the_base_nor_resident_adapters(full):
    others = [full.ask(), full.ask("a"), full.ask("b", client="two")]
    started = full.step()
    assert set(others) <= set(started) and full.third not in started


def test_after_its_age_it_gets_the_room_of_what_ends_soonest(full):
    full.step(HOLD_BACK_S / 2)
    late = full.ask("a")
    assert late in full.step()  # nobody is held back yet
    full.scheduler.remove(late)
    full.step(HOLD_BACK_S)
    held, base, other = full.ask("a"), full.ask(), full.ask("b")
    started = full.step()
    assert base in started and other in started  # b, with more to do, is left alone
    assert held not in started and full.running[0] in started
    while full.running[0].max_new:
        assert held not in full.step()
    full.step()
    assert full.third in full.step()
    assert held not in full.step()  # it is its turn to wait now
    full.step(HOLD_BACK_S)
    full.scheduler.remove(full.third)
    assert held in [*full.step(), *full.step()]


def test_what_was_held_back_goes_on_when_who_waited_gives_up(full):
    full.step()
    full.step(HOLD_BACK_S)
    held = full.ask("a")
    assert held not in full.step()
    full.scheduler.remove(full.third)
    assert held in [*full.step(), *full.step()]


def test_one_that_is_pinned_while_it_is_held_back_goes_on_and_another_yields():
    world = Pretended(room=2)
    for digest in "abc":
        world.adapter(digest)
    world.ask("a", new=20), world.ask("b", new=900)
    world.step()
    third = world.ask("c")
    world.step()
    world.step(HOLD_BACK_S)
    held = world.ask("a")
    assert held not in world.step()
    world.tier.pin("a", True)
    assert held in world.step()
    world.step(HOLD_BACK_S)
    assert world.ask("b") not in world.step()
    world.scheduler.remove(next(one for one in world.scheduler._running if one.awaits == "b"))
    assert third in [*world.step(), *world.step()]
    assert_counts(world)


def test_only_what_is_needed_is_held_back():
    """Cache blocks for virtual rows: adapters without any keep their room, whatever they have left to do."""
    world = Pretended(room=100, blocks=33)  # a quarter of the blocks may hold virtual rows
    for digest, virtual in (("plain", 0), ("soft", 8 * 16), ("other", 16)):
        world.adapter(digest, virtual=virtual)
    world.ask("plain", new=50), world.ask("soft", new=300)
    world.step()
    third = world.ask("other")
    world.step()
    world.step(HOLD_BACK_S)
    plain, soft = world.ask("plain"), world.ask("soft")
    started = world.step()
    assert plain in started and soft not in started and third not in started


def test_room_goes_round_by_clients():
    """One client's hundred cold adapters don't come before another's one."""
    world = Pretended(room=1, max_running=16)
    for number in range(101):
        world.adapter(str(number))
    world.ask("0", new=10)
    world.step()
    for number in range(1, 100):
        world.ask(str(number), new=10, client="flood")
    world.step()
    other = world.ask("100", new=10, client="other")
    order = []
    while other not in order:
        order += [one for one in world.step() if one not in order]
    assert len(order) <= 4


def test_one_that_can_not_be_prepared_when_there_is_room_costs_its_own_requests_alone(full, monkeypatch):
    prepare = full.prepare

    def broken(resident):
        if resident.digest == "c":
            raise RuntimeError("as a fault would")
        prepare(resident)

    monkeypatch.setattr(full, "prepare", broken)
    full.adapter("d")
    behind = full.ask("d")
    full.step()
    full.scheduler.remove(full.running[0])
    full.step()
    assert isinstance(full.failed["c"], BrokenError) and list(full.failed) == ["c"]
    full.scheduler.remove(full.third)
    assert behind in [*full.step(), *full.step()]
    assert_counts(full)


def test_pinned_adapters_that_leave_too_little_are_said_at_once(full):
    full.tier.pin("a", True)
    full.tier.pin("b", True)
    full.step()
    assert isinstance(full.failed["c"], CapacityError)


def test_an_adapter_on_its_way_delays_nobody_and_its_requests_start_first():
    world = Pretended(room=5, instant=False)
    world.adapter("slow")
    slow = world.ask("slow")
    base = world.ask()
    assert world.step() == [base]
    world.finish("slow")
    assert slow in world.step()


def test_what_is_packed_into_more_than_was_reckoned_with_takes_the_room_of_idle_ones():
    world = Pretended(room=4, instant=False)
    for digest, size in (("a", 1), ("b", 1), ("c", 2)):
        world.adapter(digest, size=size)
    for digest in "ab":
        one = world.ask(digest)
        world.finish(digest)
        world.step()
        world.scheduler.remove(one)
    third = world.ask("c")
    world.tier.add_to_runner(world.preparing.pop("c"), SimpleNamespace(bytes=3))
    assert third in world.step() and world.added == {"b", "c"}
    assert_counts(world)


def test_an_adapter_that_could_not_be_expected_is_in_nobodys_use(monkeypatch):
    world = Pretended(room=1)
    world.adapter("a")
    one = world.ask("a")
    world.step()
    world.scheduler.remove(one)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(world, "ready", lambda digest: (_ for _ in ()).throw(RuntimeError("as a fault would")))
        world.tier.expect(world.loaded["a"])
    assert world.tier.drop("a") and not world.added


def test_who_asks_after_a_refusal_is_not_left_behind_those_who_were_refused():
    world = Pretended(room=1, instant=False)
    for digest in "ab":
        world.adapter(digest)
    first = world.ask("a", client="one")
    world.step()
    world.tier.add_to_runner(world.preparing.pop("a"), CapacityError("broken"))
    assert "a" in world.failed
    other = world.ask("b", client="two")  # takes the room
    second = world.ask("a", client="one")
    world.scheduler.remove(first)
    world.step()
    world.finish("b")
    assert other in world.step()
    world.scheduler.remove(other)
    world.step(), world.finish("a")
    assert second in world.step()


TURN_S = 0.05


class Bound:
    """How long whoever is first in the queue for room waits: HOLD_BACK_S after its turn, and until the requests have ended that each
    adapter ran when it was held back. A pin may take room away from it: then others are held back anew, at once."""

    def __init__(self, world):
        self.world, self.first, self.held = world, None, set()
        self.turn = self.end = self.due = 0

    def pinned(self):
        """Before a turn."""
        self.end = self.due = max(self.end, self.turn + 1)

    def look(self):
        """After each turn."""
        self.turn += 1
        tier, left = self.world.tier, self.world.scheduler.tokens_left()
        if tier._seekers.peek() is not self.first:
            self.first, self.held = tier._seekers.peek(), set()
            self.end = self.due = self.turn + round(HOLD_BACK_S / TURN_S)
        if self.turn <= self.due + 1:
            self.end = max(
                self.end, *(self.turn + left.get(digest, 0) for digest in tier._yielding.keys() - self.held), 0
            )
        self.held = {*tier._yielding}
        assert self.first is None or self.turn <= self.end + 1  # and the turn in which it is found that they have


@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_ends_and_counts_are_right(seed):
    """Three times more adapters than room, clients, cancellations, pins: whoever is first has room in time, and everything
    ends."""
    draw = random.Random(seed)
    world = Pretended(room=6, blocks=200, max_running=6)
    bound = Bound(world)
    for number in range(18):
        world.adapter(str(number), size=1 + number % 3, virtual=draw.choice([0, 0, 5, 40]))
    waiting = []
    for _ in range(6000):
        if draw.random() < 0.4:
            digest = draw.choice([None, *world.loaded])
            sequence = world.ask(digest, new=draw.randint(1, 20), client=draw.randint(0, 3))
            waiting.append(sequence)
        if waiting and draw.random() < 0.02:
            world.scheduler.remove(sequence := draw.choice(waiting))
            waiting.remove(sequence)
        if draw.random() < 0.01:
            resident = draw.choice([one.digest for one in world.tier.snapshot()] or ["0"])
            world.tier.pin(resident, resident not in world.tier._pinned and len(world.tier._pinned) < 2)
            bound.pinned()
        world.step(TURN_S)
        bound.look()
        for sequence in [one for one in waiting if not one.max_new or one.owner in world.failed]:
            if sequence.max_new:
                world.scheduler.remove(sequence)
            waiting.remove(sequence)
        world.failed.clear()
        assert_counts(world)
    for digest in list(world.tier._pinned):
        world.tier.pin(digest, False)
    assert not world.scheduler.preemptions  # or what runs would begin anew
    for _ in range(20_000):
        world.step(TURN_S)
        bound.look()
        if not (world.scheduler.running or world.scheduler.waiting):
            break
    assert (world.scheduler.running, world.scheduler.waiting) == (0, 0)
    assert not world.tier._demands and not len(world.tier._seekers) and not world.tier._yielding
    assert_counts(world)


def assert_counts(world):
    """What is counted as it changes is what a count would find."""
    tier, residents = world.tier, world.tier.snapshot()
    assert tier.bytes == sum(one.bytes for one in residents) <= tier.budget_bytes
    assert tier.virtual_blocks == sum(one.blocks for one in residents) <= tier.virtual_limit
    running = [one.awaits for one in world.scheduler._running if one.awaits]
    assert {d: one.running for d, one in tier._demands.items() if one.running} == {d: running.count(d) for d in running}
    idle = [one for one in residents if one.digest not in tier._busy]
    assert not {one.digest for one in idle} & {*running, *tier._pinned}
    assert tier._idle.room(sparing=False) == (sum(one.bytes for one in idle), sum(one.blocks for one in idle))
    assert {one.digest for one in residents} == world.added
    assert +world.held == Counter(one.digest for one in residents if one.state is not State.READY)


def calls_of(act):
    """Python's function calls while `act` runs: a measure of work that no other load disturbs."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.disable()  # a collection calls what others have registered for it
    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def test_decisions_take_as_long_with_many_residents_as_with_few():
    """Bringing in, finding no room, asking again while there is none, starting a request: the same work for 1,000 residents of which
    256 run as for 32 and 16."""
    counts = []
    for residents, running in ((32, 16), (1000, 256)):
        world = crowded(residents, running)
        steps = []
        for digest in ("small", "large"):
            world.tier.expect(world.loaded[digest])
            world.tier.count(digest, waiting=1)
            steps += [
                calls_of(lambda digest=digest: world.tier.want(digest, "one")),  # noqa: B023
                calls_of(lambda digest=digest: world.tier.ready(digest)),  # noqa: B023
                calls_of(world.tier.attend),
            ]
        world.ask(client="one", prompt=range(64))
        steps.append(calls_of(lambda: world.scheduler._admit(StepPlan(), 0, 0)))  # noqa: B023
        assert world.scheduler.running == running + 1
        counts.append(steps)
    few, many = counts
    assert all(abs(a - b) <= 3 for a, b in zip(few, many, strict=True)), counts
    assert max(many[:-1]) < 150 and many[-1] < 250, counts  # starting one: with its four blocks hashed and published


def test_holding_back_costs_a_few_calls_for_each_that_runs():
    """All 256 must yield, of which each is looked at: the dearest decision of all."""
    world = crowded(256, running=256)
    world.now += HOLD_BACK_S
    world.ask("large")
    world.tier.want("large", "one")
    world.now += HOLD_BACK_S
    calls = calls_of(world.tier.attend)
    assert len(world.tier._yielding) == 256
    assert calls < 6 * 256, calls


def test_admission_asks_about_no_more_than_it_starts():
    """A thousand requests that wait for adapters without room cost a step nothing once they were asked about."""
    counts = []
    for waiting in (10, 1000):
        world = crowded(64, running=64)
        for number in range(waiting):
            world.adapter(f"cold {number}", size=64)
            world.ask(f"cold {number}")
        world.step()
        counts.append(calls_of(lambda: world.scheduler._next()))  # noqa: B023
    assert counts[1] - counts[0] <= 3, counts
