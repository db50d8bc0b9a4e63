"""Who carries events is called as long as it wants to be, whoever else comes and goes meanwhile."""

import sys
import threading

import pytest

from graft.server.carriers import Carriers


@pytest.fixture
def hasty():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_none_is_lost_and_none_stays_while_others_come_and_go(hasty):
    carriers, done, called = Carriers(), threading.Event(), []

    def come_and_go():
        while not done.is_set():
            carriers.add(lambda: called.append("gone"))()

    others = [threading.Thread(target=come_and_go) for _ in range(2)]
    for one in others:
        one.start()
    ends = [carriers.add(lambda number=number: called.append(number)) for number in range(500)]
    for end in ends[::2]:
        end()
    done.set()
    for one in others:
        one.join()
    carriers.call()
    assert called == list(range(1, 500, 2))


def test_one_that_raises_keeps_no_other_from_being_called(caplog):
    carriers, called = Carriers(), []
    carriers.add(lambda: 1 // 0)
    carriers.add(lambda: called.append(True))
    carriers.call()
    assert called and "ZeroDivisionError" in caplog.text
