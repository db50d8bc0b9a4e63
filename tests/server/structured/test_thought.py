"""Behind what a model thinks a text is held, and thought itself is not: as marks that are tokens, and as letters."""

import pytest
from llguidance import LLMatcher

from graft.server.structured.constraint import Schema, Tag, Tagged, Thought
from graft.server.structured.grammar import write_grammar
from graft.server.structured.vocabulary import read_vocabulary
from tests.conftest import tiny_tokenizer

SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}'
HELD = Tagged((Tag("<call>", '<call>{"f": ', Schema(SCHEMA), "}</call>"),))
GOOD, BAD = '<call>{"f": {"a": 1}}</call>', '<call>{"f": {"b": 1}}</call>'
MARKS = ["<call>", "</call>", "<think>", "</think>"]


def taken(constraint, text, tokens) -> tuple[bool, bool]:
    """Whether a text may come, and whether it may end there. `tokens`: the marks that the vocabulary has."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(tokens)
    vocabulary = read_vocabulary(tokenizer, len(tokenizer), frozenset([tokenizer.eos_token_id]))
    matcher = LLMatcher(vocabulary.tokens, write_grammar(constraint, vocabulary.special), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    may = all(matcher.consume_token(id) for id in tokenizer.encode(text, add_special_tokens=False))
    return may, may and matcher.is_accepting()


@pytest.mark.parametrize("tokens", [[], MARKS])
@pytest.mark.parametrize("begin", ["", "<think>"])
def test_calls_are_held_behind_thought(begin, tokens) -> None:
    held = Thought(begin, "</think>", HELD)
    for text, right in [
        (f"hm</think>\n\n{GOOD} and {GOOD}.", (True, True)),
        ("hm</think>text", (True, True)),
        (f"hm</think>{BAD}", (False, False)),
        (f"hm</think>{GOOD}{BAD}", (False, False)),
        ("hm < and {", (True, False)),  # thought has to end
    ]:
        assert taken(held, f"{begin}{text}", tokens) == right, text


def test_what_is_thought_is_free() -> None:
    assert taken(Thought("<think>", "</think>", HELD), f"<think>{BAD}</think>{GOOD}", []) == (True, True)


@pytest.mark.parametrize("tokens", [[], MARKS])
def test_an_answer_without_thought_is_held_from_its_beginning(tokens) -> None:
    held = Thought("<think>", "</think>", HELD)
    for text, right in [("plain", (True, True)), (f"x {GOOD}", (True, True)), (BAD, (False, False))]:
        assert taken(held, text, tokens) == right, text
