"""Masks, truncation, order and packing."""

import pytest
import torch

from graft.hub.adapters.serving_forms import CacheRows, InputRows
from graft.hub.errors import DataError
from graft.hub.evaluation.task_data import Example, load_examples
from graft.trainer.data.batches import Order, passes
from graft.trainer.data.packing import Pack, lay_out
from graft.trainer.data.sequences import TokenSequence, sequences_of, without_overlap
from tests.trainer.cases import write_rows


def test_only_the_completion_and_eos_are_learned_though_pad_is_eos(llama):
    assert llama.tokenizer.pad_token_id == llama.tokenizer.eos_token_id
    (made,) = sequences_of([Example("ab", "cd")], llama.tokenizer, 50)
    assert llama.tokenizer.decode(made.ids[: made.answer_start]) == "ab"
    assert made.ids[made.answer_start :] == (*llama.tokenizer.encode("cd"), llama.tokenizer.eos_token_id)
    assert made.learned == 3


def test_long_prompts_lose_their_beginning_and_completions_stay_whole(llama):
    (made,) = sequences_of([Example("abcdefgh", "xyz")], llama.tokenizer, 7)
    assert llama.tokenizer.decode(made.ids[: made.answer_start]) == "fgh" and made.learned == 4
    with pytest.raises(DataError, match="Example 1: its completion has 4 tokens"):
        sequences_of([Example("abcdefgh", "xyz")], llama.tokenizer, 4)


def test_a_completion_that_is_too_long_is_named_by_its_line(llama, tmp_path):
    rows = [
        {"prompt": "seen", "completion": "x"},
        {"prompt": "a", "completion": "b"},
        {"prompt": "c", "completion": "d" * 9},
    ]
    examples = without_overlap(load_examples(write_rows(tmp_path / "d.jsonl", rows)), [Example("seen", "y")])
    with pytest.raises(
        DataError, match=r"d.jsonl, line 3: its completion has 10 tokens.*--max-length \(to 256 at most"
    ):
        sequences_of(examples, llama.tokenizer, 8, 256)
    with pytest.raises(DataError, match="within 8, all that this base has for a text") as caught:
        sequences_of(examples, llama.tokenizer, 8, 8)
    assert "--max-length" not in str(caught.value)


def test_prompts_of_the_evaluation_are_never_trained_on():
    kept = without_overlap([Example("a", "1"), Example("b", "2")], [Example("a", "3")])
    assert kept == [Example("b", "2")]
    with pytest.raises(DataError, match="nothing left"):
        without_overlap([Example("a", "1")], [Example("a", "1")])


def test_an_epoch_sees_every_sequence_once_and_its_place_can_be_kept():
    sequences = [TokenSequence(tuple(range(n + 2)), 1) for n in range(23)]
    order, other = Order(sequences, 4, seed=3), Order(sequences, 4, seed=3)
    epoch = [order.next() for _ in range(6)]
    assert sorted(len(s.ids) for batch in epoch for s in batch) == list(range(2, 25))
    assert [order.next() for _ in range(6)] != epoch
    for _ in range(4):
        other.next()
    place = other.place()
    following = [other.next() for _ in range(5)]
    fresh = Order(sequences, 4, seed=99)
    fresh.go_to(*place)
    assert [fresh.next() for _ in range(5)] == following


def test_batches_hold_like_lengths():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 100, (160,), generator=generator).tolist()
    sequences = [TokenSequence(tuple(range(n)), 1) for n in lengths]
    order = Order(sequences, 8, seed=0)
    spreads = [max(sizes) - min(sizes) for sizes in ([len(s.ids) for s in order.next()] for _ in range(20))]
    assert sum(spreads) / len(spreads) < 15


def test_rows_of_every_kind_stand_where_they_belong(llama):
    H = llama.spec.hidden_size
    first, second = TokenSequence((5, 6, 7, 1), 2), TokenSequence((8, 9, 1), 1)
    prompt = InputRows(torch.randn(2, H))
    cache = CacheRows(torch.zeros(2, 3, 2, 8), torch.zeros(2, 3, 2, 8), text_start=3)
    pack = Pack(((first,), (second, first), (second,)))
    rows = lay_out(pack, [(), (prompt,), (cache,)], llama.embed, torch.device("cpu"))
    assert rows.lengths == [3, 2, 2, 3, 2] and rows.row_counts == (3, 7, 2) and rows.logit_counts == (2, 4, 2)
    assert rows.leaders == [None, None, 1, 1, None]  # both texts of the soft prompt follow it
    assert rows.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 2, 3, 4, 3, 4]
    # a logit row is the row before its target
    assert rows.logit_rows.tolist() == [1, 2, 5, 6, 8, 9, 10, 11]
    assert rows.targets.tolist() == [7, 1, 9, 1, 7, 1, 9, 1]
    assert rows.prefixes == [None, None, None, None, cache]
    embedded = llama.embed(torch.tensor([8, 9]))
    assert torch.equal(rows.rows[3:7], torch.cat([prompt.rows, embedded]))
    assert torch.equal(rows.rows[10:], embedded)


def test_passes_hold_the_limit_and_every_sequence_once():
    short, long = TokenSequence((1, 2, 3), 1), TokenSequence(tuple(range(11)), 1)
    made = passes([[short, short], [long, short]], [0, 4], limit=10)
    assert made == [[[short, short], []], [[], [long]], [[], [short]]]
    assert passes([[short, short, short]], [4], limit=8) == [[[short, short]], [[short]]]
    assert passes([[short], [short]], [0, 0], limit=100) == [[[short], [short]]]
