"""A request's edits, kept up with each token, are those that its whole history gives at once."""

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
    history = TokenHistory(Sampling(allowed_ids=(4,), bad_words=((4, 4),)), ())
    assert not history.exhausted
    history.add(4)
    assert history.exhausted
    assert TokenHistory(Sampling(allowed_ids=(4, 5), bad_words=((4,),)), (), banned=(5,)).exhausted
    assert not TokenHistory(Sampling(bad_words=((4,),)), ()).exhausted


def test_a_mask_has_a_bit_for_each_token():
    mask = mask_of((0, 31, 32, 69), 70)
    assert mask.dtype == np.uint32 and len(mask) == 3
    assert [id for id in range(96) if mask[id // 32] >> (id % 32) & 1] == [0, 31, 32, 69]
