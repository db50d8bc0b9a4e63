"""Which format a template's model writes, how earlier calls go back through the template, what a forced answer must be."""

import json

import pytest

from graft.hub.chat.conversation import BaseTemplate, Conversation, TemplateRefusalError, tool_list, tool_variables
from graft.hub.chat.template_tools import wants_text_arguments
from graft.hub.chat.turns import ChatTurn, PastCall, Tool, template_turns
from graft.server.chat.forced import MOST_CALLS, forced_calls, strict_calls
from graft.server.chat.prompts import ChatPrompts
from graft.server.chat.request import ChatError, ChatRequest, ToolUse
from graft.server.chat.tool_formats import FORMATS, find_format
from graft.server.structured.constraint import (
    Chain,
    Constraint,
    Literal,
    OneOf,
    Repeat,
    Schema,
    SpecialToken,
    Tagged,
    Thought,
)
from tests.conftest import tiny_tokenizer

# Of each family's template what decides whether, where and how tools come into a prompt: the gates that the real ones have
_TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
_MISTRAL = (
    "{% set user = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% if tools is not none and m == user[-1] %}[AVAILABLE_TOOLS]{{ tools | tojson }}"
    "[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}CALLS{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}"
)
_MISTRAL_IDS = (
    "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    "{{ c.function | tojson }}{% endfor %}"
)
TEMPLATES = {
    "hermes": [
        # Qwen 2.5 and 3, Hermes, Granite 4
        "{% if tools %}Within <tools></tools>:{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
        f"Answer within <tool_call></tool_call>{{% endif %}}{_TURNS}",
        # SmolLM 3: under a name of its own, and with the usual one in its texts
        "{% if xml_tools or python_tools %}{% if xml_tools %}Within <tools></tools> XML tags:{% for tool in xml_tools[:] %}"
        "{{ tool | string }}{% endfor %}<tool_call></tool_call>{% endif %}{% if python_tools %}<code>{{ python_tools }}"
        f"</code>{{% endif %}}{{% endif %}}{_TURNS}",
    ],
    "llama3_json": [
        "{% if not tools is defined %}{% set tools = none %}{% endif %}<|start_header_id|>system"
        "{% if tools is not none and not tools_in_user_message | default(true) %}{{ tools }}{% endif %}"
        '{% if tools is not none %}Respond with {"name": f, "parameters": {}}: {% for t in tools %}{{ t | tojson(indent=4) }}'
        f"{{% endfor %}}{{% endif %}}{_TURNS}",
    ],
    "mistral": [_MISTRAL.replace("CALLS", f"[TOOL_CALLS] [{_MISTRAL_IDS}]")],
    "mistral_args": [
        _MISTRAL.replace(
            "CALLS",
            "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
            "{% endfor %}",
        )
    ],
    "granite": [
        "{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson(indent=4) }}Respond with <|tool_call|>"
        f"{{% endif %}}{_TURNS}"
    ],
    "pythonic": [
        f"{{% if tools %}}{{{{ tools | tojson }}}} write ```tool_code{{% endif %}}{_TURNS}",  # Gemma 3, of those who add it
        f"{{% if tools is not none %}}[func_name1(p=v), func_name2()]{{{{ tools | tojson }}}}{{% endif %}}{_TURNS}",  # Llama 4
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% if tools %}<functions>{{ tools | tojson }}"
        "</functions>{% endif %}{% else %}{{ m.content }}{% endif %}{% if m.tool_calls %}<function_calls>{% endif %}{% endfor %}",
    ],  # OLMo 3, with a system message alone
}  # fmt: skip
EACH = [(name, template) for name, templates in TEMPLATES.items() for template in templates]
WEATHER = Tool(
    "get_weather", "Tells it.", {"properties": {"city": {"type": "string"}}, "required": ["city"]}, strict=True
)
NOW = Tool("now")


def tokenizer_with(template: str | None):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(("name", "template"), EACH)
def test_a_format_is_found_in_the_template(name, template) -> None:
    found = find_format(template)
    assert found is not None and found.name == name


@pytest.mark.parametrize(("name", "template"), EACH)
def test_offered_tools_come_into_the_prompt(name, template) -> None:
    turns = (ChatTurn("system", "Be kind."), *PAST, ChatTurn("user", "And?"))
    own = BaseTemplate(tokenizer_with(template))
    prompt = ChatPrompts(None, bool).prompt(ChatRequest(turns, ToolUse((WEATHER, NOW))), own)
    assert all(prompt.text.count(name) for name in ("get_weather", "now", "Tells it.")), prompt.text
    assert prompt.rules.format is FORMATS[name]
    assert "get_weather" not in ChatPrompts(None, bool).prompt(ChatRequest(turns[:2]), own).text


SMOLLM = TEMPLATES["hermes"][1]


def test_a_request_may_name_the_list_itself() -> None:
    """As SmolLM 3's users do; what they give stands."""
    own = BaseTemplate(tokenizer_with(SMOLLM))
    request = ChatRequest((ChatTurn("user", "Hi"),), variables={"xml_tools": ["now and then"]})
    assert "now and then" in ChatPrompts(None, bool).prompt(request, own).text
    assert tool_variables(SMOLLM, [NOW.as_sent()]) == {"xml_tools": [NOW.as_sent()]}
    assert tool_variables("{{ xml_tools or tools }}", [NOW.as_sent()]) == {} == tool_variables(SMOLLM, [])
    assert tool_list("{{ 'xml_tools' }}xml_tools") is None is tool_list("{{ '")


def test_no_format_is_made_up() -> None:
    assert find_format("{{ messages }}") is None
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
    ChatTurn("assistant", reasoning="Hm.", calls=(PastCall("abcdefgh1", "get_weather", '{"city": "Rome"}'),)),
    ChatTurn("tool", "sunny", call_id="abcdefgh1"),
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
                {"id": "abcdefgh1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "abcdefgh1"},
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
    said = "{{ messages[0].content }}{# tools #}<tools><tool_call>"  # a word of its own is no place
    assert "no place for tools" in str(refused(said, ChatRequest((ChatTurn("user", "now"),), use)))
    error = refused(TEMPLATES["pythonic"][2], ChatRequest(turns, use))  # which writes them into a system message
    assert error.param == "tools" and "leaves the tool now out of this prompt" in str(error)
    switched = "{{ messages[0].content }}{% if call %}{{ tools }}<tool_call>{% endif %}"
    assert "no place" in str(refused(switched, ChatRequest(turns, use)))
    own = BaseTemplate(tokenizer_with(switched))
    assert "now" in ChatPrompts(None, bool).prompt(ChatRequest(turns, use, {"call": True}), own).text
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


def test_strict_calls_are_held_behind_what_a_model_thinks() -> None:
    template = "{% for t in tools or [] %}{{ t | tojson }}<tool_call>{% endfor %}{{ messages[0].content }}</think>"
    asked = ChatRequest((ChatTurn("user", "Hi"),), ToolUse((WEATHER,)))

    def made(template: str, request: ChatRequest = asked):
        return ChatPrompts(None, lambda mark: False).prompt(request, BaseTemplate(tokenizer_with(template)))

    held = made(template)
    assert held.constraint == Thought("<think>", "</think>", strict_calls(FORMATS["hermes"], asked.use, ()))
    begun = made(f"{template}{{% if add_generation_prompt %}}<think>{{% endif %}}")
    assert begun.constraint == Thought("", "</think>", held.constraint.then) and begun.rules.reasoning_begun
    assert made(template.replace("</think>", "")).constraint == held.constraint.then
    assert held.unheld == begun.unheld == made(template, ChatRequest(asked.turns, ToolUse((NOW,)))).unheld == ()


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"hermes"}))
def test_what_no_grammar_holds_is_named(name) -> None:
    own = BaseTemplate(tokenizer_with(TEMPLATES[name][0]))
    turns, prompts = (ChatTurn("user", "Hi"),), ChatPrompts(None, lambda mark: False)
    assert prompts.prompt(ChatRequest(turns, ToolUse((WEATHER,))), own).unheld == ("tools.strict",)
    for use in (ToolUse((NOW,)), ToolUse((WEATHER,), required=True), ToolUse()):
        assert prompts.prompt(ChatRequest(turns, use), own).unheld == ()
