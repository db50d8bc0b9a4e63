"""However an answer is cut into pieces, the same comes out, without markup; and no text makes a parser raise."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.server.chat.deltas import CallArguments, CallBegin, Reply
from graft.server.chat.reasoning import ReasoningMarks, ends_within, find_reasoning
from graft.server.chat.reply_parser import ReplyParser, ReplyRules
from graft.server.chat.tool_formats import FORMATS

THINK = ReasoningMarks("<think>", "</think>")
TOOLS = frozenset(("f", "g", "get_weather", "math.add"))
NAMES = sorted(TOOLS)


def read(text: str, cuts=(), **rules) -> Reply:
    """The answer put together from the pieces between `cuts`."""
    format = FORMATS[rules.pop("format")] if "format" in rules else None
    parser, reply = ReplyParser(ReplyRules(format, TOOLS, **rules)), Reply()
    begun: set[int] = set()
    edges = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    for start, stop in pairwise(edges):
        for delta in parser.feed(text[start:stop]):
            if isinstance(delta, CallBegin):
                assert delta.index == len(begun) and delta.name and delta.id  # in order, the name first
                begun.add(delta.index)
            assert not isinstance(delta, CallArguments) or delta.index in begun
            reply.add([delta])
    return reply.add(parser.finish())


def shown(reply: Reply) -> tuple[str, str, list[tuple[str, str]]]:
    return reply.content, reply.reasoning, [(call.name, call.arguments) for call in reply.calls]


def calls(reply: Reply) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in reply.calls]


A, B = ("f", {"a": 'x}"]\n', "b": [1, {"c": None}]}), ("g", {})
# format, text, content, calls
WRITTEN = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "x}\\"]\\n", "b": [1, {"c": null}]}}\n</tool_call>', "", [A]),
    ("hermes", 'Wait.\n\n<tool_call>{"arguments": {}, "name": "g"}</tool_call>\n', "Wait.", [B]),
    ("hermes", '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "g"}\n</tool_call>', "", [B, B]),
    ("hermes", '<tool_call>{"name": "g", "arguments": {}}\n{"name": "g", "arguments": "{}"}</tool_call>', "", [B, B]),
    ("hermes", '<tool_call>{"name": "g", "id": 7, "arguments": null}', "", [B]),
    ("hermes", '<tool_call>{"name": "g", "arguments": {}}</tool_call>\nDone.', "\nDone.", [B]),
    ("llama3_json", '{"name": "g", "parameters": {}}', "", [B]),
    ("llama3_json", '<|python_tag|>{"name": "g", "parameters": {}}; {"name": "g", "parameters": {}}', "", [B, B]),
    ("llama3_json", '{"name": "Ann", "parameters": {}}', '{"name": "Ann", "parameters": {}}', []),  # no tool
    ("llama3_json", ' {"answer": {"a": 1}}', ' {"answer": {"a": 1}}', []),
    ("mistral", '[TOOL_CALLS] [{"name": "g", "arguments": {}, "id": "abc"}, {"name": "g", "arguments": {}}]', "", [B, B]),
    ("mistral", 'Hm [TOOL_CALLS]{"name": "g", "arguments": {}}', "Hm", [B]),
    ("mistral_args", '[TOOL_CALLS]g[ARGS]{}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{}', "", [B, B]),
    ("granite", '<|tool_call|>[{"name": "g", "arguments": {}}]', "", [B]),
    ("granite", "<|tool_call|>[]", "", []),
    ("pythonic", '[f(a=\'x}"]\\n\', b=[1, {"c": None}]), g()]', "", [A, B]),
    ("pythonic", "```tool_code\nget_weather(city='Rome', days=-2, deep=true)\n```",
     "", [("get_weather", {"city": "Rome", "days": -2, "deep": True})]),
    ("pythonic", "<function_calls>\nmath.add(a=1)\ng()\n</function_calls>", "", [("math.add", {"a": 1}), B]),
    ("pythonic", "[1, 2]", "[1, 2]", []),
    ("pythonic", "[f(a=__import__('os'))]", "[f(a=__import__('os'))]", []),  # read, never run
    ("pythonic", "[g(), unknown()]", "[g(), unknown()]", []),
    ("hermes", "Plain < text", "Plain < text", []),
]  # fmt: skip


@pytest.mark.parametrize(("format", "text", "content", "expected"), WRITTEN)
def test_calls_as_each_family_writes_them(format, text, content, expected) -> None:
    for cuts in ((), range(len(text)), range(0, len(text), 3), range(1, len(text), 7)):
        reply = read(text, cuts, format=format)
        assert (reply.content, calls(reply)) == (content, expected)


# What is broken: (text, content, calls with their arguments as they stand)
BROKEN = [
    ("<tool_call>\nnot json\n</tool_call>", "<tool_call>\nnot json\n</tool_call>", []),
    ('<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"arguments": {}}</tool_call>', []),
    ('<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>', []),
    ('<tool_call>{"name": "f", "arguments": {"a": "long', "", [("f", '{"a": "long')]),
    ('<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call> ok', " ok", [("f", '{"a": ]}}')]),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}, oops</tool_call>', "", [("f", '{"a": 1}')]),
    ('<tool_call>{"name": "f"', "", [("f", "")]),
    ('<tool_call>{"na', '<tool_call>{"na', []),
    ("<tool_c", "<tool_c", []),
    ('<tool_call>{"name": "' + "x" * 300 + '"}', '<tool_call>{"name": "' + "x" * 300 + '"}', []),
    ("<tool_call>" + '{"name": "f", "arguments": ' + "[" * 100, "", [("f", "[" * 100)]),
]


@pytest.mark.parametrize(("text", "content", "expected"), BROKEN)
def test_what_is_broken_is_text_or_a_call_as_far_as_it_came(text, content, expected) -> None:
    for cuts in ((), range(len(text)), range(0, len(text), 5)):
        assert shown(read(text, cuts, format="hermes")) == (content, "", expected)


# Pieces of what models write, and of what nobody should
PIECES = [
    *(mark for format in FORMATS.values() for mark in format.marks), "<think>", "</think>", '{"name": "f", ', '"arguments": ',
    '"parameters": ', '{"a": 1}', '{"name": "g", "arguments": {}}', "}", "]", "[", "{", ", ", ";", '"', "\\", "f(a=1)", "[f(a='x')]",
    "g()", "\n", " ", "é", "\U0001f600", "null", "12", "text", "'", "(", ")", "f[ARGS]{}", "{" * 70, "\x00", "<", "<tool",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=14).map("".join)


@settings(max_examples=400, deadline=None)
@given(
    text=texts,
    cuts=st.lists(st.integers(0, 120), max_size=25),
    format=st.sampled_from([None, *FORMATS]),
    reasoning=st.sampled_from([None, THINK]),
    begun=st.booleans(),
    one_call=st.booleans(),
)
def test_any_text_cut_anywhere_gives_the_same(text, cuts, format, reasoning, begun, one_call) -> None:
    rules = {"reasoning": reasoning, "reasoning_begun": begun and reasoning is not None, "one_call": one_call}
    rules |= {"format": format} if format else {}
    whole = read(text, **rules)
    assert shown(read(text, cuts, **rules)) == shown(read(text, range(len(text)), **rules)) == shown(whole)
    assert not one_call or len(whole.calls) <= 1
    if format is None:
        assert not whole.calls and (reasoning or whole.content == text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(st.text(max_size=5), json_values, max_size=4)
made = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
# How a model writes them, without faults
WRITERS = {
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects(calls, "arguments")),
    "llama3_json": lambda calls: "; ".join(objects(calls, "parameters")),
    "mistral": lambda calls: f"[TOOL_CALLS] [{', '.join(objects(calls, 'arguments'))}]",
    "mistral_args": lambda calls: "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(own)}" for name, own in calls),
    "granite": lambda calls: f"<|tool_call|>[{','.join(objects(calls, 'arguments'))}]",
}


def objects(calls, key: str) -> list[str]:
    return [json.dumps({"name": name, key: own}, ensure_ascii=len(own) % 2 == 0) for name, own in calls]


@settings(max_examples=200, deadline=None)
@given(made=made, cuts=st.lists(st.integers(0, 300), max_size=20), format=st.sampled_from(sorted(WRITERS)))
def test_every_call_arrives_whole(made, cuts, format) -> None:
    reply = read(WRITERS[format](made), cuts, format=format)
    assert (reply.content, calls(reply)) == ("", made)


def test_no_more_than_one_call_where_one_is_wanted() -> None:
    parser, reply = ReplyParser(ReplyRules(FORMATS["hermes"], TOOLS, one_call=True)), Reply()
    for char in WRITERS["hermes"]([A, B]):
        reply.add(parser.feed(char) if not parser.complete else parser.feed(char + "more"))
    assert parser.complete and calls(reply.add(parser.finish())) == [A] and not reply.content


def test_calls_have_ids_of_their_own() -> None:
    ids = {call.id for _ in range(50) for call in read(WRITERS["mistral"]([A, B]), format="mistral").calls}
    assert len(ids) == 100 and all(
        len(id) == 9 and id.isalnum() and id.isascii() for id in ids
    )  # as its template wants
    assert all(call.id.startswith("call_") for call in read(WRITERS["hermes"]([A]), format="hermes").calls)


# Reasoning

THOUGHTS = [
    ("<think>\nHm.\n\nSo.\n</think>\n\nYes.", False, "Hm.\n\nSo.", "Yes."),
    ("\n<think>a</think>b", False, "a", "b"),
    ("a</think>\nb", True, "a", "b"),
    ("No thought.", False, "", "No thought."),
    ("<think>cut of", False, "cut of", ""),
    ("<thin", False, "", "<thin"),
    ("Say <think>a</think>.", False, "", "Say <think>a</think>."),
    ("<think>\n\n</think>\n\nb", False, "", "b"),
    ("<think>a</think> b <think>c</think>", False, "a", " b <think>c</think>"),
]


@pytest.mark.parametrize(("text", "begun", "reasoning", "content"), THOUGHTS)
def test_reasoning_is_apart(text, begun, reasoning, content) -> None:
    for cuts in ((), range(len(text)), range(0, len(text), 4)):
        reply = read(text, cuts, reasoning=THINK, reasoning_begun=begun)
        assert (reply.reasoning, reply.content) == (reasoning, content)


def test_a_call_may_be_thought_about_but_not_made_in_thought() -> None:
    call = WRITERS["hermes"]([B])
    reply = read(f"<think>Shall I {call}?</think>\n{call}", format="hermes", reasoning=THINK)
    assert (reply.reasoning, reply.content, calls(reply)) == (f"Shall I {call}?", "", [B])


def test_which_templates_think_and_whether_a_prompt_ends_in_thought() -> None:
    assert find_reasoning("{{ '<think>\\n\\n</think>' }}") == THINK and find_reasoning("{{ messages }}") is None
    assert ends_within("<|assistant|>\n<think>\n", THINK)
    assert not ends_within("<|assistant|>\n<think>\n\n</think>\n\n", THINK)
    assert not ends_within("A user wrote <think> once.<|assistant|>", THINK)
