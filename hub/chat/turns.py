"""Turns, calls and tools as people write them, and as chat templates take them. Light: loads no template engine."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graft.hub.chat.conversation import Turn


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


def template_turns(turns: Iterable[ChatTurn], *, text_arguments: bool = False) -> "list[Turn]":
    """Messages as dictionaries. `text_arguments`: of calls, as JSON text instead of what it stands for."""
    return [_turn(turn, text_arguments) for turn in turns]


def _turn(turn: ChatTurn, text_arguments: bool) -> "Turn":
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
    from graft.hub.request_body import is_shallow  # with it comes pydantic

    if not isinstance(arguments, str):
        return arguments
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return read if is_shallow(read) else arguments
