"""Threads that take work in turns of clients: nobody behind another's backlog, an end that waits for nobody."""

import threading
import time
from queue import SimpleQueue

import pytest

from graft.server.errors import BrokenError, ClosedError
from graft.server.interest import Interest
from graft.server.work_pool import WorkPool
from tests.server.conftest import no_threads


def ignored(error):
    pass


@pytest.fixture
def pool():
    pool = WorkPool("test-pool", 1)
    yield pool
    pool.close(1.0)


def test_clients_take_turns(pool):
    begin, done = threading.Event(), []
    pool.submit("flood", lambda: begin.wait(10), ignored)
    for number in range(20):
        pool.submit("flood", lambda number=number: done.append(("flood", number)), ignored)
    pool.submit("other", lambda: done.append(("other", 0)), ignored)
    begin.set()
    while len(done) < 21:
        time.sleep(0.001)
    assert ("other", 0) in done[:2]
    assert [number for client, number in done if client == "flood"] == list(range(20))


@pytest.mark.parametrize("flood", [3, 10])
def test_one_client_never_has_all_threads(flood):
    """Three of four, and each that ends lets the next of it begin; what else comes takes the fourth, in turn."""
    pool, go, told = WorkPool("test-pool", 4, each=3), threading.Semaphore(0), SimpleQueue()
    for number in range(flood):
        pool.submit("flood", lambda number=number: (told.put(number), go.acquire(timeout=20)), ignored)
    assert [told.get(timeout=5) for _ in range(3)] == [0, 1, 2]
    for number in range(4):
        for client in ("one", "two"):
            pool.submit(client, lambda said=(client, number): told.put(said), ignored)
    others = [told.get(timeout=5) for _ in range(8)]
    assert sorted(others) == sorted((client, number) for client in ("one", "two") for number in range(4))
    assert all(len({client for client, _ in others[i : i + 2]}) == 2 for i in range(2, 8, 2))
    for number in range(3, flood):
        go.release()
        assert told.get(timeout=5) == number
    go.release(3)
    pool.close(5.0)
    assert told.empty() and not pool._waiting._clients


def test_what_waits_for_its_clients_own_is_forgotten_and_failed_like_the_rest():
    pool, go, told = WorkPool("test-pool", 2, each=1), threading.Event(), SimpleQueue()
    pool.submit("one", lambda: (told.put("begun"), go.wait(20)), told.put)
    assert told.get(timeout=5) == "begun"
    interest = Interest()
    pool.submit("one", lambda: told.put("never"), told.put, interest)
    pool.submit("one", lambda: told.put("never"), told.put)
    pool.submit("two", lambda: told.put("other"), told.put)
    assert told.get(timeout=5) == "other"
    interest.end()
    assert len(pool._waiting) == 1
    pool.close(0.0)
    assert isinstance(told.get(timeout=1), ClosedError)
    go.set()
    pool.close(5.0)
    assert told.empty() and not any(thread.is_alive() for thread in pool._threads)


def test_what_nobody_waits_for_any_more_is_not_begun(pool):
    begin, done = threading.Event(), []
    pool.submit("", lambda: begin.wait(10), ignored)
    interests = [Interest() for _ in range(5)]
    for number, interest in enumerate(interests):
        pool.submit(number % 2, lambda number=number: done.append(number), ignored, interest)
    for number in (3, 0):
        interests[number].end()
    assert len(pool._waiting) <= 3 + 1  # the thread may not have come for the first yet
    over = Interest()
    over.end()
    pool.submit("", lambda: done.append("over"), ignored, over)
    begin.set()
    while len(done) < 3:
        time.sleep(0.001)
    interests[1].end()  # it has been done
    pool.close(1.0)
    assert sorted(done) == [1, 2, 4]


def test_a_failure_is_told_to_who_waits_and_costs_no_thread(caplog):
    pool, told = WorkPool("test-pool", 1, begin=lambda: 1 // 0), SimpleQueue()
    for work in (lambda: {}["x"], lambda: (_ for _ in ()).throw(SystemExit)):
        pool.submit("", work, told.put)
    pool.submit("", lambda: told.put(threading.current_thread().name), told.put)
    assert [str(told.get(timeout=5)) for _ in range(3)] == ["KeyError: 'x'", "SystemExit: ", "test-pool-0"]
    assert "KeyError" in caplog.text
    pool.close(1.0)


def test_threads_start_when_there_is_work_for_them():
    pool, meeting = WorkPool("test-pool", 3), threading.Barrier(3)
    assert not pool._threads
    for _ in range(3):
        pool.submit("", lambda: meeting.wait(5), ignored)
    for thread in pool._threads:
        thread.join(0)
    deadline = time.monotonic() + 5
    while pool._idle < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert len(pool._threads) == 3 and not meeting.broken
    pool.close(5.0)
    assert not any(thread.is_alive() for thread in pool._threads)


def test_closing_leaves_what_hangs_and_fails_what_has_not_begun(pool):
    hanging, told = threading.Event(), SimpleQueue()
    pool.submit("", lambda: (told.put("begun"), hanging.wait(30)), told.put)
    assert told.get(timeout=5) == "begun"
    pool.submit("", lambda: told.put("begun too"), told.put)
    pool.submit("", lambda: told.put("begun too"), told.put)
    began = time.monotonic()
    pool.close(0.05)
    assert time.monotonic() - began < 5
    with pytest.raises(ClosedError):
        pool.submit("", lambda: None, ignored)
    hanging.set()
    for thread in pool._threads:
        thread.join(5)
    assert all(isinstance(told.get(timeout=1), ClosedError) for _ in range(2)) and told.empty()


def test_a_job_for_which_no_thread_can_be_started_is_refused_once_and_the_next_one_is_done(pool):
    told = SimpleQueue()
    with no_threads("test-pool"), pytest.raises(BrokenError, match="test-pool could not be started: can't start new"):
        pool.submit("", lambda: told.put("refused"), told.put)
    pool.submit("", lambda: told.put("next"), told.put)
    assert told.get(timeout=20) == "next"
    pool.close(5.0)
    assert told.empty() and len(pool._threads) == 1


def test_threads_that_are_there_do_the_work_of_those_that_can_not_be_started():
    pool, go, told = WorkPool("test-pool", 3), threading.Event(), SimpleQueue()
    pool.submit("", lambda: go.wait(20), told.put)
    with no_threads("test-pool"):
        pool.submit("", lambda: told.put("second"), told.put)
    go.set()
    assert told.get(timeout=20) == "second"
    pool.close(5.0)
    assert told.empty() and len(pool._threads) == 1
