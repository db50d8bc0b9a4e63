"""What a chat template does with tools, found out by having it render some."""

import json
from collections.abc import Iterable, Mapping

from graft.hub.chat.conversation import ChatTemplate, Conversation, TemplateRefusalError
from graft.hub.chat.turns import ChatTurn, PastCall, Tool, template_turns

NO_VARIABLES: Mapping[str, object] = {}
_PROBE = ("question", "an answer")
_PROBE_TURNS = (
    ChatTurn("user", "?"),
    ChatTurn("assistant", calls=(PastCall("abcdefgh1", "look_up", {_PROBE[0]: _PROBE[1]}),)),
    ChatTurn("tool", "!", name="look_up", call_id="abcdefgh1"),
    ChatTurn("user", "?"),
)
_PROBE_TOOL = Tool("look_up", "Look up.", {"type": "object", "properties": {_PROBE[0]: {"type": "string"}}})


def wants_text_arguments(template: ChatTemplate) -> bool:
    """Whether a template writes arguments as they stand, so that they must be text; most write them as JSON themselves.

    Found out by having it write a call.
    """
    for as_text in (False, True):
        turns = template_turns(_PROBE_TURNS, text_arguments=as_text)
        try:
            written = template.render(Conversation(turns, (_PROBE_TOOL.as_sent(),)))
        except TemplateRefusalError:
            continue
        if any(json.dumps(dict([_PROBE]), separators=style) in written for style in ((", ", ": "), (",", ":"))):
            return as_text
    return False


def takes_tools(template: ChatTemplate, variables: Mapping[str, object] = NO_VARIABLES) -> bool:
    """Whether a template writes tools into any prompt. `variables`: its switches.

    Found out by offering it one, with a system turn and without. One that refuses both is taken at its word for others.
    """
    refused = 0
    for turns in (_PROBE_TURNS[:1], (ChatTurn("system", "!"), *_PROBE_TURNS[:1])):
        try:
            written = template.render(Conversation(template_turns(turns), (_PROBE_TOOL.as_sent(),), variables))
        except TemplateRefusalError:
            refused += 1
            continue
        if _PROBE_TOOL.name in written:
            return True
    return refused == 2 and "tools" in template.text(with_tools=True)


def missing_tool(prompt: str, tools: Iterable[Mapping[str, object]]) -> str | None:
    """The first of the tools that were offered, in OpenAI's shape, whose name is not in the prompt; None where all are."""
    functions = (tool["function"] for tool in tools)
    names = (str(function.get("name")) for function in functions if isinstance(function, dict))
    return next((name for name in names if name not in prompt), None)
