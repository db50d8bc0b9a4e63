"""Placement: nothing moves that need not, nobody gets more than the bound, and everybody computes the same."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.server.scale.placement import Bound, Replica, preferred

MIB = 1 << 20
few = settings(deadline=None, max_examples=40)  # a busy machine is no reason to fail
DIGESTS = [f"sha256:{number:064x}" for number in range(120)]


def replicas(count: int, *, limit: int = 8, room: int = 64 * MIB) -> list[Replica]:
    return [Replica(f"replica-{number}", 0, limit, {}, room) for number in range(count)]


def first(fleet: list[Replica], digest: str) -> str:
    return preferred(fleet, digest)[0].id


@st.composite
def fleets(draw: st.DrawFn) -> list[Replica]:
    """Replicas of any kind, in any state."""
    numbers = draw(st.lists(st.integers(0, 999), min_size=1, max_size=12, unique=True))
    return [
        Replica(
            f"r{number}",
            draw(st.integers(0, 40)),
            draw(st.integers(1, 32)),
            dict.fromkeys(draw(st.lists(st.sampled_from(DIGESTS[:4]), unique=True)), MIB),
            draw(st.integers(1, 8)) * MIB,
        )
        for number in numbers
    ]


@few
@given(fleets(), st.sampled_from([None, *DIGESTS[:8]]), st.randoms())
def test_all_are_named_once_and_their_order_does_not_matter(fleet, digest, chance):
    order = preferred(fleet, digest)
    assert Counter(one.id for one in order) == Counter(one.id for one in fleet)
    mixed = fleet[:]
    chance.shuffle(mixed)
    assert preferred(mixed, digest) == order


@few
@given(st.integers(2, 20), st.data())
def test_who_goes_moves_only_what_was_first_on_it(count, data):
    fleet = replicas(count)
    gone = data.draw(st.sampled_from(fleet))
    left = [one for one in fleet if one is not gone]
    for digest in DIGESTS:
        before, after = first(fleet, digest), first(left, digest)
        assert after == before or before == gone.id
        assert after == next(one.id for one in preferred(fleet, digest) if one is not gone)


@few
@given(st.integers(1, 20))
def test_who_comes_takes_its_share_and_moves_nothing_else(count):
    fleet = replicas(count)
    more = [*fleet, Replica("new", 0, 8, {}, 64 * MIB)]
    moved = [digest for digest in DIGESTS if first(more, digest) != first(fleet, digest)]
    assert all(first(more, digest) == "new" for digest in moved)
    share = len(DIGESTS) / (count + 1)
    assert abs(len(moved) - share) < 5 * share**0.5  # five times what chance leaves


def test_adapters_spread_as_the_room_for_them_does():
    small, large = Replica("small", 0, 8, {}, 16 * MIB), Replica("large", 0, 8, {}, 48 * MIB)
    counts = Counter(first([small, large], f"digest {number}") for number in range(2000))
    assert 0.7 < counts["large"] / 2000 < 0.8


@few
@given(
    st.lists(st.integers(1, 16), min_size=1, max_size=10),
    st.lists(st.sampled_from(DIGESTS[:5]), min_size=1, max_size=150),
    st.floats(1.0, 2.0),
    st.floats(0.0, 1.0),
)
def test_nobody_is_given_more_than_the_bound(limits, requests, c, quiet):
    bound = Bound(c, quiet)
    fleet = {f"r{number}": Replica(f"r{number}", 0, limit, {}, MIB) for number, limit in enumerate(limits)}
    for under_way, digest in enumerate(requests):
        chosen = preferred(list(fleet.values()), digest, bound=bound)[0]
        even = (under_way + 1) / sum(limits)
        assert chosen.load + 1 <= max(c * even, quiet) * chosen.limit + 1
        assert chosen.load < chosen.limit or under_way >= sum(limits), "it waits though another has a free row"
        holds = {**chosen.resident, digest: MIB}
        fleet[chosen.id] = replace(chosen, load=chosen.load + 1, resident=holds)


def test_a_holder_comes_before_the_first_in_order_as_long_as_it_is_not_busy():
    fleet = replicas(5)
    order = [one.id for one in preferred(fleet, DIGESTS[0])]
    last = order[-1]
    fleet = [replace(one, resident={DIGESTS[0]: MIB}) if one.id == last else one for one in fleet]
    assert first(fleet, DIGESTS[0]) == last
    fleet = [replace(one, load=one.limit) if one.id == last else one for one in fleet]
    assert first(fleet, DIGESTS[0]) == order[0]


def test_a_hot_adapter_spreads_to_the_next_in_its_order_and_its_holders_share_it():
    fleet = {one.id: one for one in replicas(4)}
    order = [one.id for one in preferred(list(fleet.values()), DIGESTS[0])]
    used = []
    for _ in range(16):
        chosen = preferred(list(fleet.values()), DIGESTS[0])[0]
        used.append(chosen.id)
        fleet[chosen.id] = replace(chosen, load=chosen.load + 1, resident={DIGESTS[0]: MIB})
    assert list(dict.fromkeys(used)) == order
    assert used[:5] == [order[0]] * 4 + [order[1]], "half of its limit is nobody's concern"
    assert max(Counter(used).values()) == 5, "1.25 x 4, where each of four has 4 of 16"
    cooled = [replace(one, load=0 if one.id == order[2] else 1) for one in fleet.values()]
    assert first(cooled, DIGESTS[0]) == order[2]


def test_the_base_goes_to_the_least_loaded_by_its_limit():
    fleet = [Replica("a", 3, 4, {}, MIB), Replica("b", 5, 32, {}, MIB), Replica("c", 2, 8, {}, MIB)]
    assert [one.id for one in preferred(fleet, None)] == ["b", "c", "a"]


def test_who_has_no_room_for_it_comes_last():
    fleet = [Replica("small", 0, 8, {}, MIB), Replica("large", 7, 8, {}, 64 * MIB)]
    assert all(preferred(fleet, digest, size=2 * MIB)[0].id == "large" for digest in DIGESTS)


def test_nobody_is_no_choice():
    assert preferred([], DIGESTS[0]) == [] == preferred([], None)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_every_process_has_the_same_order(seed):
    code = """
from graft.server.scale.placement import Replica, preferred
fleet = [Replica(f"replica-{number}", 0, 8, {}, 64 << 20) for number in range(7)]
print(*(one.id for number in range(50) for one in preferred(fleet, f"digest {number}")))
"""
    environment = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    here = [one.id for number in range(50) for one in preferred(replicas(7), f"digest {number}")]
    assert done.stdout.split() == here


def test_the_order_is_what_it_always_was():
    """Replicas of two releases route alike while a deployment is rolled over."""
    assert [one.id.removeprefix("replica-") for one in preferred(replicas(6), "sha256:0")] == list("120435")
