"""What chats and completions know and another dialect doesn't is refused there by name; what changes nothing is taken."""

import pytest

from graft.server.http.dialects.messages_body import CountTokensBody, MessagesBody
from graft.server.http.dialects.responses_body import ResponsesBody
from graft.server.http.field_types import BadField
from graft.server.http.schemas import ChatBody, CompletionBody, check

LEAST = {
    ResponsesBody: {"model": "m", "input": "x"},
    MessagesBody: {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3},
}
KNOWN = {**CompletionBody.model_fields, **ChatBody.model_fields}
LACKED = [(body, name) for body in LEAST for name in KNOWN if name not in {*body.model_fields, "stream_options"}]
# Of parallel calls neither is refused: whether there are tools is told elsewhere.
REFUSED = [case for case in LACKED if case[1] != "parallel_tool_calls"]


def id_of(case) -> str:
    return getattr(case, "__name__", str(case))


@pytest.mark.parametrize(("body", "name"), REFUSED, ids=id_of)
def test_a_field_of_chats_that_a_dialect_lacks_is_refused_by_name(body, name) -> None:
    for value in ("what no field has", {"a": 1}, [5]):
        with pytest.raises(BadField) as refused:
            check(body, LEAST[body] | {name: value})
        assert refused.value.param == name and name in str(refused.value)


@pytest.mark.parametrize(("body", "name"), LACKED, ids=id_of)
def test_its_default_is_taken(body, name) -> None:
    given = KNOWN[name].get_default(call_default_factory=True)
    default = None if KNOWN[name].is_required() else given
    assert check(body, LEAST[body] | {name: default}).ignored == []


@pytest.mark.parametrize(
    ("body", "name", "own"),
    [
        (ResponsesBody, "max_tokens", "max_output_tokens"),
        (ResponsesBody, "messages", "input"),
        (ResponsesBody, "rep_pen", "repetition_penalty"),
        (ResponsesBody, "stop_sequences", None),
        (MessagesBody, "stop", "stop_sequences"),
        (MessagesBody, "max_completion_tokens", "max_tokens"),
        (MessagesBody, "stop_strings", "stop_sequences"),
        (MessagesBody, "adapter_id", "model"),
    ],
    ids=id_of,
)
def test_the_dialects_own_name_is_told(body, name, own) -> None:
    with pytest.raises(BadField) as refused:
        check(body, LEAST[body] | {name: ["x"]})
    assert refused.value.param == name and f"{f'use {own}' if own else 'leave it out'}." in str(refused.value)


def test_what_only_says_how_an_answer_is_sent_is_left_aside() -> None:
    for body, least in LEAST.items():
        assert check(body, least | {"stream_options": {"include_usage": True}}).ignored == ["stream_options"]


def test_a_count_of_tokens_takes_what_says_how_tokens_are_drawn() -> None:
    """The prompt is the same: clients send the body that they would have answered."""
    asked = {"model": "m", "messages": LEAST[MessagesBody]["messages"], "temperature": 0.5, "stop_sequences": ["a"]}
    assert check(CountTokensBody, asked).ignored == ["stop_sequences", "temperature"]


def test_messages_carry_the_templates_own_switches() -> None:
    for body in (MessagesBody, CountTokensBody):
        asked = {**LEAST[MessagesBody], "thinking": {"type": "disabled"}, "chat_template_kwargs": {"style": "short"}}
        assert check(body, asked).as_chat().chat_template_kwargs == {"enable_thinking": False, "style": "short"}
