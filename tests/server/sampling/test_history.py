"""A request's edits, kept up with each token, are those that its whole history gives at once."""

import time
from dataclasses import replace

import numpy as np
import pytest

from graft.server.sampling.history import BadWords, TokenHistory
from graft.server.sampling.params import Sampling, mask_of

WORDS = ((3,), (1, 2), (1, 1, 4), (2, 2, 2), (5, 6), (6, 6, 5, 6))


def banned_after(drawn: list[int]) -> set[int]:
    return {word[-1] for word in WORDS if tuple(drawn[len(drawn) - len(word) + 1 :]) == word[:-1] or len(word) == 1}


def test_a_word_is_banned_where_its_beginning_was_drawn():
    words, draw, drawn = BadWords(WORDS), np.random.default_rng(0), []
    for _ in range(500):
        assert words.banned == banned_after(drawn)
        drawn.append(int(draw.integers(8)))
        words.add(drawn[-1])


def test_thousands_of_words_take_no_time_of_a_step():
    """Every row of a step asks after each token, on the thread that all wait for."""
    words = ((7, 8, i) for i in range(3000))
    others = ((i,) for i in range(3000, 6000))
    history, began = TokenHistory(Sampling(bad_words=(*words, *others)), ()), time.thread_time()
    for i in range(1000):
        history.add(i % 7)
    assert time.thread_time() - began < 0.1


@pytest.mark.parametrize("held", [(), (7, 3)])
def test_edits_are_those_of_the_whole_history(held):
    rules = Sampling(
        presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=1.5, logit_bias=((2, 3.0),), bad_words=WORDS
    )
    history, draw, drawn = TokenHistory(rules, (0, 1), held), np.random.default_rng(1), []
    for step in range(200):
        found = {int(edit["id"]): edit for edit in history.edits}
        banned = banned_after(drawn) | (set(held) if step < 100 else set())
        for id in range(8):
            if id not in found:
                assert id not in banned | set(drawn) | {0, 1, 2}
                continue
            after = -(0.5 * (id in drawn) + 0.25 * drawn.count(id))
            assert found[id]["after"] == (-np.inf if id in banned else after)
            assert found[id]["before"] == (3.0 if id == 2 else 0)
            assert found[id]["penalty"] == np.float32(1.5 if id in {0, 1, *drawn} else 1)
        if step == 99:
            history.unban()
        drawn.append(int(draw.choice([id for id in range(8) if id not in banned])))
        history.add(drawn[-1])


def test_nothing_that_is_allowed_may_come():
    history = TokenHistory(Sampling(allowed_ids=frozenset((4,)), bad_words=((4, 4),)), ())
    assert not history.exhausted
    history.add(4)
    assert history.exhausted
    assert TokenHistory(Sampling(allowed_ids=frozenset((4, 5)), bad_words=((4,),)), (), banned=(5,)).exhausted
    assert not TokenHistory(Sampling(bad_words=((4,),)), ()).exhausted


def test_a_mask_has_a_bit_for_each_token():
    mask = mask_of(frozenset((0, 31, 32, 69)), 70)
    assert mask.dtype == np.uint32 and len(mask) == 3
    assert [id for id in range(96) if mask[id // 32] >> (id % 32) & 1] == [0, 31, 32, 69]


def test_choices_share_what_they_are_allowed():
    """A thousand of one answer, each with its own hundred thousand tokens, would take gigabytes."""
    rules = Sampling(allowed_ids=frozenset(range(0, 300, 2)), seed=1)
    other = replace(rules, seed=2)
    assert other.allowed_ids is rules.allowed_ids
    assert mask_of(other.allowed_ids, 300) is mask_of(rules.allowed_ids, 300)
