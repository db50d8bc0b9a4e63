"""A shape that can't be recorded: the others go on, and it is tried again after a while."""

import pytest
import torch

from graft.server.runners.cuda.graphs import GraphError
from graft.server.runners.cuda.recordings import _FIRST_WAIT, _LONGEST_WAIT, Recordings


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def recordings(clock):
    return Recordings("Decoding", clock)


class Maker:
    """Fails as long as it has failures left."""

    def __init__(self, *failures):
        self.failures, self.calls = [*failures], 0

    def __call__(self):
        self.calls += 1
        if self.failures:
            raise self.failures.pop()
        return "made"


@pytest.mark.parametrize("failure", [GraphError("Not today."), torch.OutOfMemoryError("Not today.")], ids=repr)
def test_one_failure_leaves_its_shape_and_no_other_unrecorded_for_a_while(recordings, clock, caplog, failure):
    maker = Maker(failure)
    assert recordings.get(1, Maker()) == "made"
    assert recordings.get(2, maker) is None and "Not today." in caplog.text
    assert recordings.get(1, Maker(ValueError())) == "made"  # as it was
    assert recordings.get(3, Maker()) == "made"
    assert recordings.working
    clock.now += _FIRST_WAIT - 1
    assert recordings.get(2, maker) is None and maker.calls == 1  # nothing is tried each step
    clock.now += 1
    assert recordings.get(2, maker) == "made"


def test_each_failure_doubles_the_wait_up_to_a_limit(recordings, clock):
    maker, waits = Maker(*[GraphError("No.")] * 12), []
    for calls in range(1, 13):
        since = clock.now
        while maker.calls < calls:
            clock.now += _FIRST_WAIT / 2
            recordings.get(1, maker)
        waits.append(clock.now - since)
    assert waits[1:4] == [_FIRST_WAIT, 2 * _FIRST_WAIT, 4 * _FIRST_WAIT]
    assert waits[-1] == waits[-2] == _LONGEST_WAIT
    assert not recordings.working


def test_other_failures_are_the_steps_own(recordings):
    with pytest.raises(ZeroDivisionError):
        recordings.get(1, Maker(ZeroDivisionError()))
    assert recordings.working


def test_a_forgotten_shape_is_recorded_anew(recordings):
    maker = Maker(GraphError("No."))
    assert recordings.get(1, maker) is None
    recordings.forget(lambda key: key == 1)
    assert recordings.working
    assert recordings.get(1, maker) == "made"
    recordings.forget(lambda key: key == 1)
    assert recordings.get(1, maker) == "made" and maker.calls == 3
