"""Which format a template's model writes, how earlier calls go back through the template, what a forced answer must be."""

import json

import pytest

from graft.hub.chat.conversation import BaseTemplate, Conversation, TemplateRefusalError
from graft.server.chat.forced import MOST_CALLS, forced_calls, strict_calls
from graft.server.chat.history import template_turns, wants_text_arguments
from graft.server.chat.prompts import ChatPrompts
from graft.server.chat.request import ChatError, ChatRequest, ChatTurn, PastCall, Tool, ToolUse
from graft.server.chat.tool_formats import FORMATS, find_format
from graft.server.structured.constraint import Chain, Constraint, Literal, OneOf, Repeat, Schema, SpecialToken, Tagged
from tests.conftest import tiny_tokenizer

# The least of each family's template that tells how its model writes calls
TEMPLATES = {
    "hermes": "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}",
    "llama3_json": "<|start_header_id|>{% if tools %}{{ tools }}{\"name\": f, \"parameters\": {} }{% endif %}",
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}[TOOL_CALLS] [",
    "mistral_args": "{% if tools %}{{ tools | tojson }}{% endif %}[TOOL_CALLS]{{ name }}[ARGS]",
    "granite": "{% if tools %}{{ tools | tojson }} respond with <|tool_call|>{% endif %}",
    "pythonic": "{% if tools %}{{ tools }} write ```tool_code{% endif %}",
}  # fmt: skip
WEATHER = Tool(
    "get_weather", "Tells it.", {"properties": {"city": {"type": "string"}}, "required": ["city"]}, strict=True
)
NOW = Tool("now")


def tokenizer_with(template: str | None):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("name", "template"), TEMPLATES.items())
def test_a_format_is_found_in_the_template(name, template) -> None:
    found = find_format(template)
    assert found is not None and found.name == name


def test_no_format_is_made_up() -> None:
    assert find_format("{{ messages }}<tool_call>") is None  # takes no tools
    assert find_format("{% if tools %}{{ tools }}{% endif %}") is None
    assert find_format("{% if tools %}<tool_call><function=f><parameter name=x>{% endif %}") is None  # of another kind


# Earlier calls

WRITES_JSON = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
WRITES_TEXT = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ '' + c.function.arguments }}{% endfor %}{% endfor %}"
)
BOTH = WRITES_JSON.replace("{{", "{{ c.function.arguments if c.function.arguments is string else", 1)
PAST = (
    ChatTurn("user", "Rome?"),
    ChatTurn("assistant", reasoning="Hm.", calls=(PastCall("c1", "get_weather", '{"city": "Rome"}'),)),
    ChatTurn("tool", "sunny", call_id="c1"),
)


@pytest.mark.parametrize(("template", "as_text"), [(WRITES_JSON, False), (WRITES_TEXT, True), (BOTH, False)])
def test_arguments_go_back_as_the_template_wants_them(template, as_text) -> None:
    own = BaseTemplate(tokenizer_with(template))
    assert wants_text_arguments(own) is as_text
    request = ChatRequest(PAST)
    assert ChatPrompts(None, lambda mark: False).prompt(request, own).text == '{"city": "Rome"}'


def test_turns_as_templates_take_them() -> None:
    assert template_turns(PAST) == [
        {"role": "user", "content": "Rome?"},
        {
            "role": "assistant", "content": "", "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert template_turns([ChatTurn("developer", "Be kind.")]) == [{"role": "system", "content": "Be kind."}]
    cut = template_turns([ChatTurn("assistant", calls=(PastCall("c", "f", '{"a'), PastCall("d", "f", "")))])
    assert [call["function"]["arguments"] for call in cut[0]["tool_calls"]] == ['{"a', {}]  # as far as it came; none


# What is refused, and by which name


def refused(template: str, request: ChatRequest, tool_format: str | None = None) -> ChatError:
    with pytest.raises(ChatError) as caught:
        ChatPrompts(tool_format, lambda mark: False).prompt(request, BaseTemplate(tokenizer_with(template)))
    return caught.value


def test_what_can_not_be_is_told_with_the_field() -> None:
    turns, use = (ChatTurn("user", "Hi"),), ToolUse((NOW,))
    error = refused("{{ messages[0].content }}", ChatRequest(turns, use))
    assert error.param == "tools" and "no place for tools" in str(error)
    unknown = "{{ messages[0].content }}{{ tools }}"
    error = refused(unknown, ChatRequest(turns, use))
    assert error.param == "tools" and "--tool-format" in str(error)
    prompt = ChatPrompts("hermes", lambda mark: False).prompt(
        ChatRequest(turns, use), BaseTemplate(tokenizer_with(unknown))
    )
    assert prompt.rules.format is FORMATS["hermes"]
    error = refused("{{ raise_exception('no system turn') }}", ChatRequest(turns))
    assert error.param == "messages" and "no system turn" in str(error)
    error = refused("{{ messages }}", ChatRequest(turns, variables={"tools": []}))
    assert error.param == "chat_template_kwargs" and "tools" in str(error)


def test_variables_tools_and_where_the_prompt_ends_reach_the_template() -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ mood }}"
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    own, prompts, turns = BaseTemplate(tokenizer_with(template)), ChatPrompts(None, bool), (ChatTurn("user", "Hi"),)
    assert prompts.prompt(ChatRequest(turns, variables={"mood": "!"}), own).text == "[user]Hi![a]"
    assert prompts.prompt(ChatRequest(turns, opens_reply=False), own).text == "[user]Hi"
    begun = (*turns, ChatTurn("assistant", "The"))
    assert prompts.prompt(ChatRequest(begun, opens_reply=False, continues=True), own).text == "[user]Hi[assistant]The"
    text = ChatPrompts("hermes", bool).prompt(ChatRequest(turns, ToolUse((WEATHER,))), own).text
    assert json.loads(text[len("[user]Hi") : -len("[a]")]) == WEATHER.as_sent()
    assert "strict" not in text  # asks something of the server, and nothing of the model


def test_a_tokenizer_may_have_several_templates() -> None:
    own = BaseTemplate(tokenizer_with({"default": "plain", "tool_use": "{{ tools }}with"}))
    assert own.text(with_tools=False) == "plain" and own.text(with_tools=True) == "{{ tools }}with"
    assert own.render(Conversation([{"role": "user", "content": "x"}])) == "plain"
    with pytest.raises(TemplateRefusalError):
        BaseTemplate(tokenizer_with("{{ 1 // 0 }}")).render(Conversation([{"role": "user", "content": "x"}]))


# Forced calls


def example(constraint: Constraint) -> str:
    """A text that it allows: each schema by null, the first of several ways, the least of repetitions."""
    match constraint:
        case Literal(text):
            return text
        case SpecialToken(text):
            return f"«{text}»"
        case Schema():
            return "null"
        case Chain(parts):
            return "".join(map(example, parts))
        case OneOf(parts):
            return example(parts[0])
        case Repeat(part, least, _, between):
            return between.join([example(part)] * max(least, 2))
    raise AssertionError(constraint)


FORCED = {
    "hermes": '<tool_call>\n{"name": "now", "arguments": null}\n</tool_call>',
    "llama3_json": '{"name": "now", "parameters": null}',
    "mistral": '«[TOOL_CALLS]»[{"name": "now", "arguments": null}]',
    "mistral_args": "«[TOOL_CALLS]»now«[ARGS]»null",
    "granite": '<|tool_call|>[{"name": "now", "arguments": null}]',
    "pythonic": '{"name": "now", "arguments": null}',
}


@pytest.mark.parametrize("name", FORCED)
def test_a_forced_call_is_written_as_the_model_writes_it(name) -> None:
    use, special = ToolUse((NOW, WEATHER), required=True, named="now"), {"[TOOL_CALLS]", "[ARGS]"}
    forced = forced_calls(FORMATS[name], use, special)
    texts = {example(forced), example(_once(forced))}
    assert FORCED[name] in texts
    several = forced_calls(FORMATS[name], ToolUse((NOW, WEATHER), required=True), special)
    assert _repeat(several).most == (1 if name == "llama3_json" else MOST_CALLS) and _repeat(forced).most == 1
    alone = forced_calls(FORMATS[name], ToolUse((NOW, WEATHER), required=True, parallel=False), special)
    assert _repeat(alone).most == 1
    hash(several)  # so that what is compiled can be kept


def _repeat(constraint: Constraint) -> Repeat:
    if isinstance(constraint, Repeat):
        return constraint
    assert isinstance(constraint, Chain)
    return next(part for part in constraint.parts if isinstance(part, Repeat))


def _once(constraint: Constraint) -> Constraint:
    """With each repetition as its one part."""
    if isinstance(constraint, Repeat):
        return _once(constraint.part)
    return Chain(tuple(map(_once, constraint.parts))) if isinstance(constraint, Chain) else constraint


def test_strict_tools_hold_calls_to_their_schemas_and_leave_the_text_free() -> None:
    held = strict_calls(FORMATS["hermes"], ToolUse((WEATHER, NOW)), ())
    assert isinstance(held, Tagged) and held.least == 0 and held.most is None
    assert json.loads(held.tags[0].body.text)["required"] == ["city"] and held.tags[0].trigger == "<tool_call>"
    assert strict_calls(FORMATS["hermes"], ToolUse((NOW,)), ()) is None  # nothing asks for it
    assert strict_calls(FORMATS["mistral"], ToolUse((WEATHER,)), ()) is None  # nothing can hold it
