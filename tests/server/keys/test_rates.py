"""Limits of a key: never passed in any minute, given back where not used, and forgotten in the end."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from graft.server.keys import rates
from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.rates import Rates
from graft.server.keys.standing import AboveLimitError, Level, RateLimitError, Standing


class Clock:
    now = 1000.25

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> Rates:
    return Rates(clock)


def test_requests_come_back_when_their_minute_has_passed(kept: Rates, clock: Clock) -> None:
    limits = Limits(requests=2)
    assert kept.enter("a", limits).requests == Level(2, 1, 60.75)
    clock.now += 30
    assert kept.enter("a", limits).requests == Level(2, 0, 60.75)
    with pytest.raises(RateLimitError, match="its limit of 2 requests a minute") as refused:
        kept.enter("a", limits)
    assert refused.value.retry_s == pytest.approx(30.75)
    assert refused.value.standing.requests == Level(2, 0, 60.75)
    kept.enter("b", limits)  # another's
    clock.now += refused.value.retry_s - 0.01
    with pytest.raises(RateLimitError):
        kept.enter("a", limits)
    clock.now += 0.02
    kept.enter("a", limits)


def test_no_minute_has_more_than_the_limit(kept: Rates, clock: Clock) -> None:
    limits, draw = Limits(requests=10, tokens=500), random.Random(3)
    came: list[tuple[float, int]] = []
    for _ in range(5000):
        clock.now += draw.expovariate(1.0)
        wanted = draw.randrange(1, 100)
        try:
            kept.enter("a", limits)
        except RateLimitError:
            continue
        try:
            kept.reserve("a", limits, wanted)
        except RateLimitError:
            kept.leave("a", 0, 0)
            came.append((clock.now, 0))
        else:
            used = draw.randrange(wanted + 1)
            clock.now += draw.random() * 5
            kept.leave("a", wanted, used)
            came.append((clock.now, used))
    assert len(came) > 300
    for at, _ in came:
        lately = [used for then, used in came if at - 60 < then <= at]
        assert len(lately) <= 11 and sum(lately) <= 500  # a request is counted as it enters, listed here as it leaves


def test_what_was_reserved_and_not_used_is_given_back(kept: Rates) -> None:
    limits = Limits(tokens=100)
    kept.enter("a", limits)
    assert kept.reserve("a", limits, 80).tokens == Level(100, 20, 60.0)
    kept.enter("a", limits)
    with pytest.raises(RateLimitError) as refused:
        kept.reserve("a", limits, 21)
    assert refused.value.retry_s == 1  # what is reserved may come back at any moment
    kept.leave("a", 0, 0)
    kept.leave("a", 80, 5)
    kept.enter("a", limits)
    assert kept.reserve("a", limits, 95).tokens == Level(100, 0, 60.75)
    with pytest.raises(AboveLimitError, match="101 tokens"):
        kept.reserve("a", limits, 101)


def test_what_was_used_beyond_is_owed(kept: Rates, clock: Clock) -> None:
    limits = Limits(tokens=100)
    kept.enter("a", limits)
    kept.reserve("a", limits, 10)
    kept.leave("a", 10, 250)
    with pytest.raises(RateLimitError, match="100 tokens a minute") as refused:
        kept.enter("a", limits)
    assert refused.value.standing.tokens == Level(100, 0, 60.75)
    clock.now += 61
    kept.enter("a", limits)


def test_places_are_taken_and_left(kept: Rates) -> None:
    limits = Limits(concurrency=2)
    kept.enter("a", limits)
    kept.enter("a", limits)
    with pytest.raises(RateLimitError, match="2 requests at once"):
        kept.enter("a", limits)
    kept.leave("a", 0, 0)
    assert kept.enter("a", limits) == Standing()


def test_a_refusal_counts_nothing(kept: Rates, clock: Clock) -> None:
    limits = Limits(requests=3, concurrency=1)
    kept.enter("a", limits)
    for _ in range(10):
        with pytest.raises(RateLimitError):
            kept.enter("a", limits)
    kept.leave("a", 0, 0)
    kept.enter("a", limits)
    kept.leave("a", 0, 0)
    kept.enter("a", limits)


def test_many_threads_never_pass_a_limit(kept: Rates) -> None:
    limits = Limits(requests=150, tokens=1000, concurrency=7)
    under_way, most = [0], [0]

    def one(seed: int) -> int:
        admitted = 0
        for _ in range(60):
            try:
                kept.enter("a", limits)
            except RateLimitError:
                continue
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
            try:
                kept.reserve("a", limits, 20)
                reserved, used = 20, 5
            except RateLimitError:
                reserved, used = 0, 0
            under_way[0] -= 1
            kept.leave("a", reserved, used)
            admitted += 1
        return admitted

    with ThreadPoolExecutor(32) as pool:
        admitted = sum(pool.map(one, range(32)))
    assert admitted == 150 and most[0] <= 7
    with pytest.raises(RateLimitError) as refused:
        kept.enter("a", limits)
    standing = refused.value.standing
    assert standing.requests is not None and standing.requests.left == 0
    assert standing.tokens is not None and standing.tokens.left >= 1000 - 150 * 5


def test_who_asks_no_more_is_forgotten(kept: Rates, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_IDLE", 100)
    for number in range(1000):
        clock.now += 1
        kept.enter(f"key {number}", UNLIMITED)
        kept.leave(f"key {number}", 0, 3)
    assert len(kept._accounts) <= 101
