"""Masks are made beside the step; a slow or broken one costs its own row alone."""

import threading
import time
from functools import partial
from queue import SimpleQueue

import numpy as np
import pytest

from graft.server.errors import BrokenError, ConstraintFailedError
from graft.server.structured import compiler as compiler_module
from graft.server.structured import mask_thread
from graft.server.structured.compiler import Compiler
from graft.server.structured.constraint import Regex
from graft.server.structured.mask_thread import MaskThread
from graft.server.structured.matcher import Matcher
from tests.conftest import VOCAB, tiny_tokenizer
from tests.server.conftest import no_threads

END = frozenset({1})
A, B = 66, 67  # the tokens of "a" and "b"


@pytest.fixture(scope="module")
def compiler():
    made = Compiler(tiny_tokenizer(), VOCAB, END)
    yield made
    made.close()


@pytest.fixture
def masks():
    made = MaskThread()
    yield made
    made.close()


@pytest.fixture
def matcher(compiler):
    def of(pattern, **wanted):
        answers, came = [], threading.Event()
        compiler.request(Regex(pattern), END, "", lambda answer: (answers.append(answer), came.set()), **wanted)
        assert came.wait(20)
        assert isinstance(answers[0], Matcher), answers
        return answers[0]

    return of


def test_a_clients_thousand_choices_are_one_job(compiler, monkeypatch):
    """While it is compiled there is one timer for all of them; another client's request for the same has its own turn."""
    compiler._read()
    compiled, go, answers, came = compiler._compiled, threading.Event(), [], threading.Semaphore(0)
    made = []

    def slowly(constraint):
        made.append(constraint)
        assert go.wait(20)
        return compiled(constraint)

    monkeypatch.setattr(compiler, "_compiled", slowly)
    before = threading.active_count()
    for client in ["one"] * 1000 + ["two"]:
        compiler.request(Regex("a{7}"), END, client, lambda answer: (answers.append(answer), came.release()))
    assert threading.active_count() <= before + 4  # a timer for each client, and the pool's two
    go.set()
    assert all(came.acquire(timeout=20) for _ in range(1001)) and len(made) <= 2
    assert all(isinstance(answer, Matcher) for answer in answers) and len(set(map(id, answers))) == 1001
    assert not compiler._waiting


def allowed(matcher):
    return [*np.flatnonzero(np.unpackbits(matcher.allowed.view(np.uint8), bitorder="little"))]


def step(masks, matchers, token, **wanted):
    for one in matchers:
        one.take(token, **wanted)
    masks.begin(matchers)
    masks.wait(matchers, 20)


def test_a_batch_is_brought_up_to_date(masks, matcher):
    one, other = matcher("ab?"), matcher("a[ab]")
    assert allowed(one) == allowed(other) == [A]
    step(masks, [one, other], A)
    assert allowed(one) == [1, B] and allowed(other) == [A, B]
    assert one.ready and not one.late


def test_the_end_is_held_back_as_long_as_anything_else_may_come(masks, matcher):
    one = matcher("a?b?", holds_end=True)
    assert allowed(one) == [A, B]
    step(masks, [one], A, holds_end=True)
    assert allowed(one) == [B]
    step(masks, [one], B, holds_end=True)
    assert allowed(one) == [1]


def test_matchers_of_one_constraint_know_nothing_of_each_other(masks, matcher):
    one, other = matcher("a[ab]+"), matcher("a[ab]+")
    step(masks, [one], A)
    assert allowed(other) == [A] and allowed(one) == [A, B]


def test_a_token_that_can_not_come_costs_its_own_row(masks, matcher):
    one, other = matcher("ab+"), matcher("[ab]b+")
    one.take(B)
    other.take(B)
    masks.begin([one, other])
    masks.wait([one, other], 20)
    assert isinstance(one.error, ConstraintFailedError)
    assert other.error is None and allowed(other) == [B]


def test_what_raises_costs_its_own_row(masks, matcher, monkeypatch):
    one, other = matcher("a[ab]b+"), matcher("a[ab]a+")
    show = Matcher.show

    def broken(self, mask):
        if self is one:
            raise RuntimeError("as a fault would")
        show(self, mask)

    monkeypatch.setattr(Matcher, "show", broken)
    step(masks, [one, other], A)
    assert isinstance(one.error, BrokenError) and allowed(other) == [A, B]


def test_who_is_late_is_told_when_it_is_ready_and_holds_nobody_up_again(masks, matcher, monkeypatch):
    slow, other = matcher("a[ab]b*"), matcher("a[ab]a*")
    consume, go = Matcher.consume, threading.Event()

    def hanging(self):
        if self is slow:
            go.wait(20)
        consume(self)

    monkeypatch.setattr(Matcher, "consume", hanging)
    slow.take(A)
    other.take(A)
    masks.begin([slow, other])
    masks.wait([slow, other], 0.01)
    assert slow.late and other.late  # they were made together
    told = threading.Event()
    masks.when_ready(slow, told.set)
    masks.begin([slow])  # it is on its way already
    time.sleep(mask_thread.LONG_S)
    assert not told.is_set()
    go.set()
    assert told.wait(20) and slow.ready and allowed(slow) == [A, B]
    go.clear()
    other.alone = False
    slow.take(B)
    other.take(B)
    masks.begin([slow, other])
    masks.wait([other], 20)
    assert not other.late and allowed(other) == [1, A] and not slow.ready
    go.set()
    masks.wait([slow], 20)
    assert allowed(slow) == [1, B]


def test_who_can_not_be_told_that_a_mask_is_ready_is_told_once_more(masks, matcher, monkeypatch):
    one, go, told, consume = matcher("ab+"), threading.Event(), threading.Event(), Matcher.consume
    monkeypatch.setattr(Matcher, "consume", lambda self: (go.wait(20), consume(self)))
    one.take(A)
    masks.begin([one])
    masks.wait([one], 0.0)
    calls = []

    def tell():
        calls.append(True)
        if len(calls) == 1:
            raise MemoryError("as a fault would")
        told.set()

    masks.when_ready(one, tell)
    go.set()
    assert told.wait(20) and len(calls) == 2


def test_masks_for_which_no_thread_can_be_started_fail_and_the_next_ones_are_made(masks, matcher):
    one, other = matcher("ab+"), matcher("a[ab]")
    with no_threads("graft-masks"):
        step(masks, [one], A)
    assert isinstance(one.error, BrokenError) and one.ready and not one.late
    step(masks, [other], A)
    assert other.error is None and allowed(other) == [A, B]


@pytest.mark.parametrize("name", ["graft-constraints", "Thread-"])  # the pool's, and a timer's
def test_a_constraint_for_which_no_thread_can_be_started_is_told_so_and_the_next_one_is_compiled(monkeypatch, name):
    compiler = Compiler(tiny_tokenizer(), VOCAB, END)
    compiler._read()
    compiled, go, answers = compiler._compiled, threading.Event(), SimpleQueue()
    monkeypatch.setattr(compiler, "_compiled", lambda constraint: (go.wait(20), compiled(constraint))[1])
    with no_threads(name):
        for _ in range(2):
            compiler.request(Regex("a{8}"), END, "", answers.put)
            told = answers.get(timeout=20)
            assert isinstance(told, BrokenError) and "can't start new thread" in str(told)
    go.set()
    compiler.request(Regex("a{8}"), END, "", answers.put)
    assert isinstance(answers.get(timeout=20), Matcher)
    compiler.close()
    assert answers.empty() and not compiler._waiting


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])  # a panic in the library is no Exception either
def test_a_matcher_that_can_not_be_made_costs_who_waits_for_it_alone(compiler, monkeypatch, error):
    """Whether it waits for what is compiled, or finds it."""
    make, compiled, go, answers = compiler_module.Matcher, compiler._compiled, threading.Event(), SimpleQueue()
    unborn = []

    def broken(state, first, vocabulary, ends, holds_end):
        if holds_end:
            unborn.append(state)
            raise error("as a fault would")
        return make(state, first, vocabulary, ends, holds_end)

    monkeypatch.setattr(compiler_module, "Matcher", broken)
    monkeypatch.setattr(compiler, "_compiled", lambda constraint: (go.wait(20), compiled(constraint))[1])
    for number in range(3):
        compiler.request(Regex(error.__name__), END, "", partial(put, answers, number), holds_end=number == 1)
    go.set()
    told = dict(answers.get(timeout=20) for _ in range(3))
    assert isinstance(told[1], BrokenError) and isinstance(told[0], make) and isinstance(told[2], make)
    compiler.request(Regex(error.__name__), END, "", answers.put, holds_end=True)
    assert isinstance(answers.get(timeout=20), BrokenError) and len(unborn) == 2


def put(answers, number, answer):
    answers.put((number, answer))


def test_who_can_not_be_told_keeps_no_other_from_being_told(compiler, monkeypatch):
    compiled, go, answers = compiler._compiled, threading.Event(), SimpleQueue()
    monkeypatch.setattr(compiler, "_compiled", lambda constraint: (go.wait(20), compiled(constraint))[1])
    compiler.request(Regex("a{10}"), END, "", lambda answer: 1 // 0)
    compiler.request(Regex("a{10}"), END, "", answers.put)
    go.set()
    assert isinstance(answers.get(timeout=20), Matcher)
