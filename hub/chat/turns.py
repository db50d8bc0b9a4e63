"""Turns, calls and tools as people write them, and as chat templates take them; what a template does with tools."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft.hub.chat.conversation import ChatTemplate, Conversation, TemplateRefusalError, Turn
from graft.hub.request_body import is_shallow


@dataclass(frozen=True)
class PastCall:
    """A call that an earlier answer made. `arguments`: JSON text, or what it stands for."""

    id: str
    name: str
    arguments: str | Mapping[str, object]


@dataclass(frozen=True)
class ChatTurn:
    """A message. `call_id`: whose result it is, in a turn of the role "tool"."""

    role: str
    text: str = ""
    name: str | None = None
    reasoning: str | None = None
    calls: tuple[PastCall, ...] = ()
    call_id: str | None = None


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask for. `parameters`: a JSON schema of its arguments. `strict`: they must fit it."""

    name: str
    description: str | None = None
    parameters: Mapping[str, object] | None = None
    strict: bool = False

    def as_sent(self) -> dict[str, object]:
        """In OpenAI's shape, which templates take."""
        rest = {"description": self.description, "parameters": self.parameters}
        given = {key: value for key, value in rest.items() if value is not None}
        return {"type": "function", "function": {"name": self.name, **given}}


NO_VARIABLES: Mapping[str, object] = {}
_PROBE = ("question", "an answer")
_PROBE_TURNS = (
    ChatTurn("user", "?"),
    ChatTurn("assistant", calls=(PastCall("abcdefgh1", "look_up", {_PROBE[0]: _PROBE[1]}),)),
    ChatTurn("tool", "!", name="look_up", call_id="abcdefgh1"),
    ChatTurn("user", "?"),
)
_PROBE_TOOL = Tool("look_up", "Look up.", {"type": "object", "properties": {_PROBE[0]: {"type": "string"}}})


def template_turns(turns: Iterable[ChatTurn], *, text_arguments: bool = False) -> list[Turn]:
    """Messages as dictionaries. `text_arguments`: of calls, as JSON text instead of what it stands for."""
    return [_turn(turn, text_arguments) for turn in turns]


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


def _turn(turn: ChatTurn, text_arguments: bool) -> Turn:
    made: dict[str, object] = {"role": "system" if turn.role == "developer" else turn.role, "content": turn.text}
    if turn.reasoning is not None:
        made["reasoning_content"] = turn.reasoning
    if turn.name is not None:
        made["name"] = turn.name
    if turn.call_id is not None:
        made["tool_call_id"] = turn.call_id
    if turn.calls:
        made["tool_calls"] = [_call(call, text_arguments) for call in turn.calls]
    return made


def _call(call: PastCall, text_arguments: bool) -> dict[str, object]:
    arguments = _as_text(call.arguments) if text_arguments else _as_object(call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _as_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _as_object(arguments: object) -> object:
    """What JSON text stands for; a text that is none stays as it is, as an answer that was cut off is."""
    if not isinstance(arguments, str):
        return arguments
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return read if is_shallow(read) else arguments
