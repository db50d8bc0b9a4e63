"""Nobody waits for ever: whatever fails, everybody whom it concerns is told at once, and nobody else notices."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue

import pytest
import torch

from graft.hub.errors import GraftError
from graft.server.adapters.time_slices import TimeSlices
from graft.server.cache.blocks import BlockPool
from graft.server.engine.consumers import RunningRequest
from graft.server.engine.engine import Engine
from graft.server.engine.messages import Placed
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.errors import BrokenError, EndedError, EngineError, NotFiniteError
from graft.server.sampling.params import Sampling
from graft.server.structured.constraint import Regex
from tests.server.conftest import no_threads
from tests.server.live import ask

GREEDY = Sampling(temperature=0)
AT_ONCE_S = 1.0
LONG = Request((5, 6, 7), max_tokens=200, ignore_eos=True, sampling=GREEDY)
SHORT = Request((5, 6, 7), max_tokens=3, ignore_eos=True, sampling=GREEDY)


class Fault:
    """Raises in place of `owner.name`, from the `first` call on for `times` calls."""

    def __init__(self, monkeypatch, owner, name, error=RuntimeError, first=1, times=1):
        true, self.calls = getattr(owner, name), 0
        self.gone = threading.Event()

        def call(*args, **options):
            self.calls += 1
            if first <= self.calls < first + times:
                raise error("as a fault would")
            self.gone.set()
            return true(*args, **options)

        monkeypatch.setattr(owner, name, call)


def outcome(stream):
    """A stream's end: its ids, or its error."""
    try:
        return stream.result().ids
    except EngineError as error:
        return error


@contextmanager
def at_once():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < AT_ONCE_S


def adapter(name, **options):
    return Request((5, 6, 7), name, max_tokens=3, ignore_eos=True, sampling=GREEDY, **options)


def test_the_end_of_the_engines_thread_is_told_to_everybody(llama, make_folder, monkeypatch):
    """To those who run, those who wait for a load, those who ask something, and those who come later."""
    never = threading.Event()
    engine = Engine(llama, {"a": make_folder("lora", llama)})
    monkeypatch.setattr(engine.loader._loading, "_load_artifact", lambda location, folder: never.wait(20))
    streams = [engine.submit(LONG), engine.submit(LONG), engine.submit(adapter("a"))]
    next(iter(streams[0]))
    Fault(monkeypatch, engine.scheduler, "plan", MemoryError, times=10**9)
    with at_once():
        for stream in streams:
            with pytest.raises(EndedError, match=r"ended by a failure \(MemoryError\): restart"):
                stream.result()
    with at_once():
        for late in (lambda: engine.submit(SHORT), lambda: ask(engine, lambda: 1)):
            with pytest.raises(EndedError, match="restart the server"):
                late()
    assert not engine.alive and isinstance(engine.failure, EndedError) and engine.ended.is_set()
    never.set()
    engine.close()


def test_who_asks_while_the_engine_ends_is_told(llama, monkeypatch):
    engine = Engine(llama)
    answers = SimpleQueue()

    def asker():
        try:
            ask(engine, lambda: (_ for _ in ()).throw(SystemExit))
        except Exception as error:
            answers.put(error)

    def late():
        try:
            while True:
                ask(engine, lambda: time.sleep(0.001))
        except Exception as error:
            answers.put(error)

    threads = [threading.Thread(target=target) for target in (*[late] * 4, asker)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert isinstance(answers.get(timeout=5), EndedError)
    engine.close()


def test_a_message_that_raises_fails_its_own_request_only(llama, monkeypatch):
    with Engine(llama) as engine:
        good = engine.submit(LONG)
        next(iter(good))
        Fault(monkeypatch, engine.scheduler, "add")
        with at_once(), pytest.raises(BrokenError, match="as a fault would"):
            engine.generate([SHORT])
        assert len(engine.generate([SHORT])[0].ids) == 3
        assert len(good.result().ids) == 200
        assert ask(engine, lambda: engine.ledger.discrepancy()) is None


def test_a_question_that_raises_fails_who_asked(llama):
    with Engine(llama) as engine:
        with at_once(), pytest.raises(BrokenError, match="KeyError"):
            ask(engine, lambda: {}["nothing"])
        assert ask(engine, lambda: 7) == 7


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_failure_in_planning_costs_the_sequence_it_was_about(llama, monkeypatch, call):
    """The others' rows of that plan are planned again, with the logits that they are owed."""
    asked = [Request((5, 6, 7 + i), max_tokens=40, score_from=0, sampling=GREEDY, ignore_eos=True) for i in range(6)]
    with Engine(llama) as engine:
        alone = engine.generate(asked)
        Fault(monkeypatch, engine.blocks, "take", MemoryError, first=call)
        ends = [outcome(stream) for stream in [engine.submit(one) for one in asked]]
        assert sum(isinstance(end, EngineError) for end in ends) == 1
        assert all(isinstance(end, EngineError) or end == one.ids for end, one in zip(ends, alone, strict=True))
        again = engine.generate(asked)
        assert [one.ids for one in again] == [one.ids for one in alone]
        assert [len(one.prompt) for one in again] == [2] * 6
        assert ask(engine, lambda: engine.ledger.discrepancy()) is None


def test_books_that_do_not_balance_after_a_failure_end_the_engine(llama, monkeypatch):
    engine = Engine(llama)
    true = engine.blocks.take

    def half(n):
        true(n)
        raise MemoryError("when it had been done")

    monkeypatch.setattr(engine.blocks, "take", half)
    with at_once(), pytest.raises(BrokenError, match="when it had been done"):
        engine.generate([SHORT])
    assert engine.ended.wait(AT_ONCE_S)
    with pytest.raises(EndedError, match="StateLostError"):
        engine.submit(SHORT)
    engine.close()


def test_a_pool_of_blocks_says_what_does_not_agree():
    pool = BlockPool(6)
    taken = pool.take(2)
    assert pool.discrepancy({block: 1 for block in taken}) is None
    assert "counts 1 users and has 0" in pool.discrepancy({taken[0]: 1})
    pool._free.pop()
    assert "listed as unused" in pool.discrepancy({block: 1 for block in taken})


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [
        ("lora", "runner", "prepare"),
        ("lora", "runner", "add"),
        ("prefix", "scheduler", "take"),
        ("prefix", "cache", "write"),
        ("prompt", "scheduler", "detach"),
        ("prompt", "scheduler", "add"),
        ("lora", "residency", "expect"),
        ("lora", "residency", "check"),
        ("lora", "prover", "case"),
        ("lora", "loader", "request"),
    ],
)
def test_an_adapter_whose_way_in_fails_is_refused_and_comes_in_when_the_fault_is_gone(
    llama, make_folder, monkeypatch, kind, owner, name
):
    folders = {"a": make_folder(kind, llama), "b": make_folder("lora", llama, 5)}
    with Engine(llama, folders) as engine:
        good = engine.submit(LONG)
        next(iter(good))
        with monkeypatch.context() as patched:
            Fault(patched, engine.runner.cache if owner == "cache" else getattr(engine, owner), name)
            with at_once(), pytest.raises(BrokenError, match="as a fault would"):
                engine.generate([adapter("a")])
        assert [len(result.ids) for result in engine.generate([adapter("a"), adapter("b")])] == [3, 3]
        assert len(good.result().ids) == 200
        assert ask(engine, lambda: engine.ledger.discrepancy()) is None
        assert all(loaded.users == 0 for loaded in engine.loader.snapshot())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["graft-disk", "graft-loader", "graft-prepare", "graft-constraints", "graft-masks"])
def test_who_needs_a_thread_that_can_not_be_started_is_told_and_served_once_it_can(llama, make_folder, name):
    asked = adapter("a", constraint=Regex("[a-z]{9}"))
    with Engine(llama, {"a": make_folder("lora", llama)}) as engine:
        good = engine.submit(LONG)
        next(iter(good))
        with no_threads(name), pytest.raises(BrokenError, match="can't start new thread"):
            engine.generate([asked])
        assert len(engine.generate([asked])[0].ids) == 3
        assert len(good.result().ids) == 200
        assert ask(engine, lambda: engine.ledger.discrepancy()) is None
        assert all(loaded.users == 0 for loaded in engine.loader.snapshot())


def test_a_consumer_that_can_not_be_told_its_end_ends_the_engine_and_is_told_then(llama, monkeypatch):
    engine = Engine(llama)
    other = engine.submit(LONG)
    next(iter(other))
    Fault(monkeypatch, engine.runner, "step")
    Fault(monkeypatch, RunningRequest, "fail", times=10**9)
    with at_once():
        assert isinstance(outcome(other), EndedError)
    engine.close()


@pytest.mark.parametrize("part, name", [("_inbox", "end"), ("ledger", "fail_all")])
def test_whatever_fails_when_the_engine_ends_it_says_that_it_has_ended(llama, monkeypatch, part, name):
    engine = Engine(llama)
    stream = engine.submit(LONG)
    next(iter(stream))
    Fault(monkeypatch, getattr(engine, part), name)
    Fault(monkeypatch, engine.scheduler, "plan")
    assert engine.ended.wait(AT_ONCE_S)
    if name == "end":  # what was in the inbox is not told; who had begun is
        with at_once():
            assert isinstance(outcome(stream), EndedError)
    monkeypatch.undo()
    engine.close()


def test_an_answer_that_can_not_be_handed_on_is_told_and_holds_no_adapter(llama, make_folder, monkeypatch):
    """Nobody but the loader's thread knows of it."""
    with Engine(llama, {"a": make_folder("lora", llama)}) as engine:
        post, lost = engine._inbox.post, []

        def losing(message):
            if isinstance(message, Placed) and not lost:
                lost.append(message)
                raise MemoryError("as a fault would")
            post(message)

        monkeypatch.setattr(engine._inbox, "post", losing)
        with at_once(), pytest.raises(BrokenError, match="as a fault would"):
            engine.generate([adapter("a")])
        assert isinstance(lost[0].answer, tuple)
        assert all(loaded.users == 0 for loaded in engine.loader.snapshot())
        assert len(engine.generate([adapter("a")])[0].ids) == 3


def test_what_was_computed_for_answers_that_are_no_numbers_is_not_found_again(llama):
    """A step that went wrong on the device leaves keys and values that are none: only whoever shared them pays for that."""
    asked = Request(tuple(range(5, 45)), max_tokens=2, ignore_eos=True, sampling=GREEDY)
    with Engine(llama, options=Options(runner="eager")) as engine:
        good = engine.generate([replace(asked, prompt=(9, *asked.prompt))])[0]
        outputs = engine.runner.outputs

        def spoilt(batch):
            made = outputs(batch)
            for run in batch.runs:
                engine.runner.cache.values[:, list(run.blocks)] = float("nan")
            return replace(made, logits=torch.full_like(made.logits, float("nan")))

        engine.runner.outputs = spoilt
        with pytest.raises(NotFiniteError):
            engine.generate([asked])
        engine.runner.outputs = outputs
        again = engine.generate([asked])[0]
        assert again.cached_tokens == 0 and len(again.ids) == 2
        found = engine.generate([replace(asked, prompt=(9, *asked.prompt))])[0]
        assert found.cached_tokens == 32 and found.ids == good.ids  # what others computed is there still


def test_an_adapter_that_can_not_be_taken_out_ends_the_engine(llama, make_folder, monkeypatch):
    folders = {name: make_folder("lora", llama, seed, name) for seed, name in enumerate("ab")}
    size = 40_000
    engine = Engine(llama, folders, options=Options(device_bytes=size))
    engine.generate([adapter("a")])
    engine.residency.budget_bytes = engine.residency.bytes  # room for one
    Fault(monkeypatch, engine.runner, "remove", times=10**9)
    with at_once(), pytest.raises(EndedError):
        engine.generate([adapter("b")])
    engine.close()


def test_an_engine_that_can_not_start_leaves_no_threads(llama):
    before = threading.active_count()
    with pytest.raises(GraftError, match="Unknown runner"):
        Engine(llama, options=Options(runner="none"))
    assert threading.active_count() == before


def test_a_thread_of_turns_that_ends_holds_nobody_up():
    def deadly():
        raise SystemExit

    turns = TimeSlices("test")
    turns.start(deadly)
    with at_once():
        turns.go(1.0)
        turns.go(1.0)
    assert not turns.alive and not turns.busy
    turns.close()
    unborn = TimeSlices("test", deadly)
    with at_once():
        unborn.go(1.0)
    assert not unborn.alive
