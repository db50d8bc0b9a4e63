"""Earlier turns as chat templates take them."""

import json
from collections.abc import Iterable

from graft.hub.chat.conversation import ChatTemplate, Conversation, TemplateRefusalError, Turn
from graft.hub.request_body import is_shallow
from graft.server.chat.request import ChatTurn, PastCall, Tool

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
