"""An end waits a while for what computes, once for all of it; whoever waits for what is left to itself is told."""

import threading
from types import SimpleNamespace

import pytest

from graft.server.adapters import loading as loading_module
from graft.server.engine import engine as engine_module
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request, Started
from graft.server.errors import ClosedError
from graft.server.leaving import threads_left
from graft.server.work_pool import WorkPool
from tests.server.live import ask


def test_who_waits_for_a_step_that_does_not_come_back_is_told_once(llama, monkeypatch):
    monkeypatch.setattr(engine_module, "LEAVE_S", 0.2)
    engine, begun, go = Engine(llama), threading.Event(), threading.Event()
    begin = engine.runner.begin

    def hanging(*given):
        begun.set()
        go.wait(60)
        return begin(*given)

    monkeypatch.setattr(engine.runner, "begin", hanging)
    stream = engine.submit(Request((5, 6, 7), max_tokens=20, ignore_eos=True))
    assert begun.wait(20)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive() and engine.ended.is_set() and engine.failure is None
    assert threads_left() and engine._thread.is_alive()
    with pytest.raises(ClosedError):
        ask(engine, lambda: 1)
    engine.close()
    go.set()
    engine._thread.join(20)
    assert not engine._thread.is_alive()
    (_, first), (_, second) = (stream.sink.get(timeout=5) for _ in range(2))
    assert isinstance(first, Started) and isinstance(second, ClosedError) and stream.sink.empty()


def test_all_that_is_computed_for_adapters_has_the_same_time_to_end_in(llama, monkeypatch):
    """Each pool had all of it, one after the other, and the later ones began more work meanwhile."""
    clock = SimpleNamespace(now=7.0)
    clock.monotonic = lambda: clock.now
    closed = []

    def close(pool, wait_s):
        """As where all of it hangs."""
        closed.append((pool._name, clock.now))
        clock.now += wait_s

    with Engine(llama) as engine, monkeypatch.context() as patched:
        patched.setattr(WorkPool, "close", close)
        patched.setattr(loading_module, "time", clock)
        engine.loader.close(5.0)
    assert clock.now == 12.0
    computing = {"graft-loader", "graft-fold", "graft-prepare"}
    assert {name for name, at in closed if at == 7.0} == {"graft-look-up", "graft-download", "graft-disk", *computing}
    assert {name for name, _ in closed[-3:]} == computing
