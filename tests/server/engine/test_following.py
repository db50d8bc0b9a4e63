"""Steps begun before the one under way has ended: what comes of them is what comes of one step after the other.

With the reference runner, which computes a step at once and tells later; a GPU's is in tests/server/runners/cuda.
"""

import itertools
import random
import threading
from dataclasses import replace

import pytest

from graft.hub.errors import GraftError
from graft.server.cache.blocks import BlockPool, chain_hashes, root_hash
from graft.server.cache.step import BLOCK_ROWS
from graft.server.cache.tensors import block_bytes
from graft.server.engine import engine as engine_module
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.engine.scheduler import Scheduler
from graft.server.engine.sequence import SequenceState
from graft.server.errors import BrokenError
from graft.server.operations.step_pace import StepPace
from graft.server.runners.eager.runner import EagerRunner
from graft.server.runners.protocol import no_wait
from graft.server.sampling.params import Sampling
from graft.server.structured.constraint import Regex
from tests.server.engine.test_engine import assert_idle

KINDS = ("lora", "bitfit", "prefix", "houlsby")


class EarlyRunner(EagerRunner):
    """The reference, taking a step while the one before it is under way. `fails`: what is raised, by step."""

    begins_early = True

    def __init__(self, base, cache):
        super().__init__(base, cache)
        self.begun, self.early, self.fails = 0, 0, {}
        self.under_way, self.drawn = [], ()

    def begin(self, batch, draws, scores, ready=no_wait):
        self.begun += 1
        self.raise_at("begin")
        early = [run for run in batch.runs if any(id < 0 for id in run.tokens)]
        self.early += bool(early)
        assert len(self.under_way) <= bool(early), "one step more is under way than the one that follows it"
        runs = [
            replace(run, tokens=[id if id >= 0 else self.drawn[-1 - id] for id in run.tokens]) for run in batch.runs
        ]
        result = self.step(replace(batch, runs=tuple(runs)), draws, scores, ready)
        self.drawn = [token.id if token else 0 for token in result.tokens]
        number = self.begun
        self.under_way.append(number)

        def tell():
            self.under_way.remove(number)
            self.raise_at("result", number)
            return result

        return tell

    def raise_at(self, what, number=None):
        if (what, number or self.begun) in self.fails:
            raise self.fails[what, number or self.begun]


@pytest.fixture
def engine_with(llama, make_folder, monkeypatch):
    def make(runner, **options):
        monkeypatch.setattr(engine_module, "make_runner", lambda name, base, cache: runner(base, cache))
        folders = {kind: make_folder(kind, llama, seed) for seed, kind in enumerate(KINDS)}
        return Engine(llama, folders, options=Options(**options))

    return make


def requests(count, seed=1):
    """Of all sorts: drawn and greedy, penalised, biased, constrained, ending by themselves, by length, by a token."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        sampling = Sampling(
            temperature=draw.choice((0.0, 1.0)),
            seed=i,
            top_p=draw.choice((1.0, 0.9)),
            frequency_penalty=draw.choice((0.0, 0.0, 0.5)),
            logit_bias=draw.choice(((), ((7, 2.0),))),
            logprobs=draw.choice((None, 2)),
        )
        made.append(
            Request(
                tuple(draw.randrange(2, 300) for _ in range(draw.randint(1, 40))),
                draw.choice((None, *KINDS)),
                max_tokens=draw.randint(1, 40),
                min_tokens=draw.choice((0, 0, 3)),
                stop_ids=tuple(draw.sample(range(2, 300), draw.choice((0, 20)))),
                sampling=sampling,
                score_from=draw.choice((None, None, None, 1)),
                constraint=Regex("[a-z]+") if draw.random() < 0.1 else None,
            )
        )
    return made


def all_at_once(engine, asked):
    """What comes of requests that are all there when the first step is taken: whoever is slow to ask changes nothing."""
    there, begin = threading.Event(), engine.runner.begin
    engine.runner.begin = lambda *step: (there.wait(), begin(*step))[1]
    streams = [engine.submit(one) for one in asked]
    there.set()
    return [stream.result() for stream in streams]


@pytest.mark.parametrize("room", [None, 24], ids=["roomy", "preempted"])
def test_steps_begun_early_say_what_steps_in_turn_say(engine_with, llama, room):
    asked = requests(60)
    sizes = {} if room is None else {"cache_bytes": room * block_bytes(llama.spec, llama.dtype)}
    told = {}
    for runner in (EagerRunner, EarlyRunner):
        with engine_with(runner, max_running=8, step_rows=64, **sizes) as engine:
            for kind in KINDS:  # proven: beside proofs, which take long on a busy machine, no step is begun early
                engine.generate([Request((5,), kind, max_tokens=1)])
            told[runner] = [(one.ids, one.finish_reason) for one in all_at_once(engine, asked)]
            if room is not None:
                assert engine.scheduler.preemptions > 0
            if runner is EarlyRunner:
                assert engine.runner.early
            assert_idle(engine)
    assert told[EarlyRunner] == told[EagerRunner]
    assert {reason for _, reason in told[EagerRunner]} == {"stop", "length"}


def test_whoever_comes_or_goes_meanwhile_is_served_and_disturbs_nobody(engine_with):
    long = [Request((5, 6, i), max_tokens=200, ignore_eos=True, sampling=Sampling(seed=i)) for i in range(6)]
    with engine_with(EagerRunner) as engine:
        alone = [engine.generate([one])[0].ids for one in long]
    with engine_with(EarlyRunner) as engine:
        streams, there, steps, begin = [], threading.Event(), itertools.count(), engine.runner.begin

        def begin_or_cancel(*step):  # in the midst of its tokens, however slowly others come and go
            there.wait()
            if next(steps) == 60:
                streams[2].cancel()
            return begin(*step)

        engine.runner.begin = begin_or_cancel
        streams += [engine.submit(one) for one in long]
        there.set()
        for i in range(20):
            engine.generate([Request((9, i), KINDS[i % 4], max_tokens=3, ignore_eos=True)])
        results = [stream.result() for stream in streams]
        assert results[2].finish_reason == "cancelled" and len(results[2].ids) < 200
        assert results[2].ids == alone[2][: len(results[2].ids)]
        assert [one.ids for i, one in enumerate(results) if i != 2] == [ids for i, ids in enumerate(alone) if i != 2]
        assert engine.runner.early > 20
        assert_idle(engine)


def test_an_answer_repeats_an_earlier_one_from_blocks_that_early_steps_filled(engine_with):
    """What is found again under a hash is what was computed for those tokens."""
    asked = Request((5, 6, 7), max_tokens=3 * BLOCK_ROWS, ignore_eos=True, sampling=Sampling(temperature=0))
    with engine_with(EarlyRunner) as engine:
        first = engine.generate([asked])[0]
        [again] = engine.generate([replace(asked, prompt=(*asked.prompt, *first.ids[: 2 * BLOCK_ROWS]), max_tokens=8)])
        assert again.cached_tokens == 2 * BLOCK_ROWS
        assert again.ids == first.ids[2 * BLOCK_ROWS : 2 * BLOCK_ROWS + 8]


def test_a_block_that_a_failed_step_was_to_fill_is_not_found_though_the_step_after_it_succeeds(engine_with):
    asked = Request((5, 6, 7), max_tokens=2 * BLOCK_ROWS, ignore_eos=True, sampling=Sampling(temperature=0))
    with engine_with(EagerRunner) as engine:
        first = engine.generate([asked])[0]
    again = replace(asked, prompt=(*asked.prompt, *first.ids[:BLOCK_ROWS]), max_tokens=4)
    filling = BLOCK_ROWS - len(asked.prompt) + 1  # the step that computes a block's last row
    with engine_with(EarlyRunner) as engine:
        engine.runner.fails["result", filling] = MemoryError()
        with pytest.raises(BrokenError):
            engine.generate([asked])
        assert engine.runner.begun == filling + 1  # the one after it, which ended well
        [second] = engine.generate([again])
        assert second.cached_tokens == 0 and second.ids == first.ids[BLOCK_ROWS : BLOCK_ROWS + 4]
        assert_idle(engine)


@pytest.mark.parametrize("what", ["begin", "result"])
@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError()], ids=["RuntimeError", "MemoryError"])
def test_a_step_that_fails_costs_its_own_requests_an_error_and_the_next_ones_are_served(engine_with, what, error):
    asked = [Request((5, 6, i), max_tokens=60, ignore_eos=True, sampling=Sampling(seed=i)) for i in range(4)]
    with engine_with(EarlyRunner) as engine:
        engine.runner.fails[what, 20] = error
        streams = [engine.submit(one) for one in asked]
        for stream in streams:
            with pytest.raises(BrokenError):
                stream.result()
        assert engine.runner.early > 5 and engine.alive
        assert_idle(engine)
        engine.runner.fails.clear()
        again = engine.generate(asked)
        assert_idle(engine)
    with engine_with(EagerRunner) as engine:
        assert [one.ids for one in engine.generate(asked)] == [one.ids for one in again]


def test_planning_ahead_that_fails_ends_those_it_was_about_and_loses_no_block(engine_with, monkeypatch):
    schedule, failing = Scheduler._schedule, []

    def broken(self, plan, sequence, count):
        if failing and sequence.known < len(sequence.tokens) and len(plan.chunks) == 1:
            failing.clear()
            raise RuntimeError("broken")
        return schedule(self, plan, sequence, count)

    monkeypatch.setattr(Scheduler, "_schedule", broken)
    with engine_with(EarlyRunner) as engine:
        streams = [engine.submit(Request((5, 6, i), max_tokens=60, ignore_eos=True)) for i in range(3)]
        failing.append(True)
        ends = []
        for stream in streams:
            try:
                ends.append(stream.result())
            except GraftError as error:
                ends.append(error)
        assert all(isinstance(end, BrokenError) for end in ends)
        assert_idle(engine)
        assert len(engine.generate([Request((5, 6), max_tokens=9, ignore_eos=True)])[0].ids) == 9


def decoding(scheduler, prompt, new):
    sequence = SequenceState(None, list(range(prompt)), new, prompt - 1)
    scheduler.add(sequence)
    scheduler.plan()
    return sequence


def test_a_step_that_follows_is_the_one_that_would_be_planned():
    scheduler = Scheduler(BlockPool(20), pace=StepPace(64, 64), max_running=4)
    a, b = decoding(scheduler, BLOCK_ROWS - 1, 9), decoding(scheduler, 5, 1)
    a.take(3), b.take(4)
    scheduler.plan()
    plan = scheduler.follow({a: 1, b: 0})  # b ends with what is drawn now
    assert [(chunk.sequence, chunk.start, chunk.count, chunk.logits) for chunk in plan.chunks] == [
        (a, BLOCK_ROWS, 1, 1)
    ]
    assert plan.chunks[0].run().tokens == [-2] and len(a.blocks) == 2 and not plan.published
    a.take(8)
    assert a.tokens[-2:] == [3, 8] and a.remaining == 0
    scheduler.remove(b)
    a.take(9)
    while len(a.tokens) < 2 * BLOCK_ROWS:
        scheduler.plan()
        follows = scheduler.follow({a: 0})
        assert not follows.published
        a.take(len(a.tokens))
        a.take(len(a.tokens))
    plan = scheduler.plan()
    hashes = [*chain_hashes(root_hash(None), a.tokens, (BLOCK_ROWS, 2 * BLOCK_ROWS))]
    assert scheduler.blocks.find(hashes) == a.blocks[:2]


def test_nothing_follows_while_a_plan_could_do_more():
    scheduler = Scheduler(BlockPool(4), pace=StepPace(8, 8), max_running=2)
    a = decoding(scheduler, 4, 50)
    assert scheduler.follow({}) is None  # it draws nothing
    b = SequenceState(None, list(range(12)), 5, 11)
    scheduler.add(b)
    assert scheduler.follow({a: 0}) is None  # b could start
    a.take(1)
    scheduler.plan()
    assert b.remaining and scheduler.follow({a: 0, b: 1}) is None  # a prompt is under way
    while b.remaining:
        a.take(1)
        scheduler.plan()
    c = SequenceState(None, [1, 2], 5, 1)
    scheduler.add(c)
    while scheduler.follow({a: 0, b: 1}) is not None:  # c has no place
        a.take(1), b.take(1)
        assert len(a.blocks) + len(b.blocks) <= 3
    assert scheduler.blocks.available == 0  # no block is left
    b.max_new = 1
    assert scheduler.follow({a: 0, b: 1}) is None  # b's place is c's then
