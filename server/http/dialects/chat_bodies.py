"""What the other dialects have in common: each of their bodies stands for a chat's, on whose machinery it is answered."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from pydantic import ConfigDict

from graft.hub.chat.turns import ChatTurn, PastCall
from graft.hub.errors import GraftError
from graft.hub.request_body import Body
from graft.server.http.request_fields import NEUTRAL, OTHER_NAMES
from graft.server.http.response_shapes import Json
from graft.server.http.sampling_fields import SamplingBody
from graft.server.http.schemas import ChatBody, CompletionBody, check

_HOW_IT_IS_SENT = ("stream_options",)  # of no effect on what is made


def _refused_fields() -> Iterator[tuple[str, tuple[object, ...]]]:
    """Fields of chats and completions by all their names, with their defaults: such values leave everything as it is."""
    for name, field in {**CompletionBody.model_fields, **ChatBody.model_fields}.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if name not in _HOW_IT_IS_SENT:
            neutral = () if default is None else (default,)
            yield from ((one, neutral) for one in (name, *OTHER_NAMES.get(name, ())))


# What chats and completions know: a dialect has the field too, or takes no value of it that would change the text.
CHAT_FIELDS: Mapping[str, tuple[object, ...]] = {
    **dict(_refused_fields()),
    "best_of": (1,),
    "top_logprobs": (0,),
    **NEUTRAL,
}


class LooseBody(Body):
    """A part of a body in which fields that nobody here knows are left aside."""

    model_config = ConfigDict(extra="ignore")


class OptionsBody(Body):
    """The same, named in the answer's header."""

    model_config = ConfigDict(extra="allow")


def chat_body(turns: Iterable[ChatTurn], fields: Json) -> ChatBody:
    """Raises BadField, which names the field as chats do."""
    return check(ChatBody, {"messages": [_message(turn) for turn in turns], **fields})


def sampling_of(body: SamplingBody) -> Json:
    """What a body says about how its tokens are drawn, as far as it says anything."""
    return {name: getattr(body, name) for name in SamplingBody.model_fields if name in body.model_fields_set}


def as_tool(name: str, description: str | None, parameters: Mapping[str, object] | None, *, strict: bool) -> Json:
    """A tool as chats offer it."""
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters, "strict": strict},
    }


def as_named_choice(name: str) -> Json:
    """The tool that has to be called, as chats name it."""
    return {"type": "function", "function": {"name": name}}


def as_schema_format(name: str, schema: Mapping[str, object] | bool) -> Json:
    """What an answer has to fit, as chats ask for it."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


@contextmanager
def fields_called(names: Mapping[str, str]) -> Iterator[None]:
    """Errors name fields as the dialect does. `names`: the chat's name -> the dialect's."""
    try:
        yield
    except GraftError as error:
        error.param = names.get(error.param or "", error.param)
        raise


def _message(turn: ChatTurn) -> Json:
    return {
        "role": turn.role,
        "content": turn.text,
        "reasoning_content": turn.reasoning,
        "tool_calls": [_call(call) for call in turn.calls],
        "tool_call_id": turn.call_id,
    }


def _call(call: PastCall) -> Json:
    return {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
