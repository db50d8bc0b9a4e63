"""What is asked of a base to score an example."""

import pytest

from graft.hub.errors import DataError
from graft.hub.evaluation.eval_prompts import example_name, label_groups, text_prompts
from graft.hub.evaluation.task_data import Example
from tests.conftest import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # a byte, a token


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text))


def test_labels_that_differ_in_their_last_id_share_a_sequence():
    groups = label_groups(Example("abc", " x", (" x", " y", " no")), TOKENIZER, 50, "here")
    assert [tuple(group.last) for group in groups] == [(" x", " y"), (" no",)]
    assert all(group.ids(label) == ids(label) for group in groups for label in group.last)
    assert {group.prompt for group in groups} == {ids("abc")}


def test_the_prompt_is_cut_for_the_longest_label_and_eos():
    (group, _) = label_groups(Example("abcdef", " x", (" x", "long")), TOKENIZER, 8, "here")
    assert group.prompt == ids("def")


@pytest.mark.parametrize(
    "example, room, words",
    [
        (Example("ab", "x"), 50, 'here has no "labels"'),
        (Example("ab", "x", ("x", "long")), 5, "here: its answer leaves no room"),
        (Example((), "x", ("x", "y")), 50, "here: its prompt is no token"),
        (Example("ab", "x", ("x", "")), 50, "here: the label '' is no token"),
    ],
)
def test_what_can_not_be_scored_is_named(example, room, words):
    class Mute:  # a chat template may make nothing of a conversation
        chat_template = "{{ '' }}"

        def apply_chat_template(self, *_, **__):
            return ""

        def encode(self, text, add_special_tokens):
            return TOKENIZER.encode(text, add_special_tokens=add_special_tokens)

    with pytest.raises(DataError, match=words):
        label_groups(example, Mute() if example.prompt == () else TOKENIZER, room, "here")


def test_a_text_may_be_half_as_long_again_as_the_longest_reference():
    prompts, new_tokens = text_prompts([Example("abc", "xyz"), Example("b", "zzzz")], TOKENIZER, 50)
    assert (prompts, new_tokens) == ([ids("abc"), ids("b")], 7)
    prompts, new_tokens = text_prompts([Example("abc", "x" * 100)], TOKENIZER, 6)
    assert (prompts, new_tokens) == ([ids("c")], 5)


def test_examples_are_counted_from_one():
    assert example_name(0) == "Evaluation example 1"
