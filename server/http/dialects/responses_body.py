"""The body of POST /v1/responses as the chat it stands for. Nothing is kept from one request to the next."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from graft.hub.chat.turns import ChatTurn, PastCall
from graft.server.http.constraint_fields import NamedSchema, ObjectFormat, TextFormat
from graft.server.http.dialects.chat_bodies import (
    CHAT_FIELDS,
    LooseBody,
    OptionsBody,
    as_named_choice,
    as_schema_format,
    as_tool,
    chat_body,
    sampling_of,
)
from graft.server.http.field_types import BadField, ModelName, Text
from graft.server.http.message_bodies import MAX_MESSAGES, MAX_TOOLS, ToolName
from graft.server.http.response_shapes import Json
from graft.server.http.sampling_fields import INT64, SamplingBody
from graft.server.http.schemas import ChatBody, WaitingBody

MAX_INCLUDED = 100
_LOGPROBS = "message.output_text.logprobs"
_TEXTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


def _require_text(given: object) -> object:
    if isinstance(given, dict) and given.get("type") not in _TEXTS:
        raise ValueError(f"this server reads parts of text only, not of the type {given.get('type')!r:.100}")
    return given


class TextPiece(LooseBody):
    """A part of a content."""

    type: Literal["input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text"]
    text: Text = ""
    refusal: Text = ""


Pieces = list[Annotated[TextPiece, BeforeValidator(_require_text)]]
Texts = Annotated[
    Annotated[Text, Tag("(text)")] | Annotated[Pieces, Tag("(parts)")],
    Discriminator(lambda given: "(parts)" if isinstance(given, list) else "(text)"),
]


def _text(content: str | Sequence[TextPiece]) -> str:
    return content if isinstance(content, str) else "".join(part.text or part.refusal for part in content)


class MessageItem(LooseBody):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts = ""

    def turn(self) -> ChatTurn:
        return ChatTurn(self.role, _text(self.content))


class CallItem(LooseBody):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: Text = ""
    name: Annotated[Text, Field(min_length=1)]
    arguments: Text = "{}"

    def turn(self) -> ChatTurn:
        return ChatTurn("assistant", calls=(PastCall(self.call_id, self.name, self.arguments),))


class ResultItem(LooseBody):
    """What a call came to."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Texts = ""

    def turn(self) -> ChatTurn:
        return ChatTurn("tool", _text(self.output), call_id=self.call_id)


class ReasoningItem(LooseBody):
    """What an earlier answer thought first."""

    type: Literal["reasoning"]
    summary: Pieces = Field(default_factory=list)
    content: Pieces = Field(default_factory=list)

    def turn(self) -> ChatTurn:
        return ChatTurn("assistant", reasoning=_text(self.content or self.summary))


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _item_type(given: object) -> str:
    return f"({given.get('type') or 'message' if isinstance(given, dict) else getattr(given, 'type', None)})"


Item = Annotated[
    Annotated[MessageItem, Tag("(message)")]
    | Annotated[CallItem, Tag("(function_call)")]
    | Annotated[ResultItem, Tag("(function_call_output)")]
    | Annotated[ReasoningItem, Tag("(reasoning)")],
    Discriminator(
        _item_type,
        custom_error_type="item",
        custom_error_message=f"an item's type is one of {', '.join(_ITEMS)} here, where nothing is kept and no tools are run",
    ),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]


class FunctionTool(LooseBody):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: dict[str, object] | None = None
    strict: bool = Field(False, description="Calls fit the schema, where the model's way of calling can be held to it.")


class ChosenFunction(LooseBody):
    """The one tool that has to be called."""

    type: Literal["function"]
    name: Text


class FlatSchema(NamedSchema):
    """JSON that a schema holds valid."""

    type: Literal["json_schema"]


class TextConfig(OptionsBody):
    """What the text has to be."""

    format: Annotated[
        Annotated[TextFormat, Tag("(text)")]
        | Annotated[ObjectFormat, Tag("(json_object)")]
        | Annotated[FlatSchema, Tag("(json_schema)")],
        Discriminator(
            lambda given: f"({given.get('type') if isinstance(given, dict) else getattr(given, 'type', None)})",
            custom_error_type="format",
            custom_error_message="type must be text, json_object or json_schema",
        ),
    ] = TextFormat(type="text")


def _as_items(given: object) -> object:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class ResponsesBody(WaitingBody, SamplingBody):
    """POST /v1/responses"""

    model_config = ConfigDict(extra="allow")
    not_honoured: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **CHAT_FIELDS,
        "previous_response_id": (),
        "conversation": (),
        "background": (False,),
        "prompt": (),
        "truncation": ("disabled",),
    }

    model: ModelName
    input: Annotated[Items, BeforeValidator(_as_items, json_schema_input_type=str | Items)]
    instructions: Text = ""
    max_output_tokens: int | None = Field(None, ge=1, lt=INT64)
    text: TextConfig = TextConfig()
    tools: list[FunctionTool] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: Annotated[
        Annotated[Literal["none", "auto", "required"], Tag("(word)")] | Annotated[ChosenFunction, Tag("(named)")],
        Discriminator(lambda given: "(word)" if isinstance(given, str) else "(named)"),
    ] = "auto"
    parallel_tool_calls: bool = True
    include: list[str] = Field(default_factory=list, max_length=MAX_INCLUDED)
    metadata: dict[str, Text] = Field(default_factory=dict, description="Comes back with the answer.")
    chat_template_kwargs: dict[str, object] = Field(
        default_factory=dict, description="The chat template's own switches."
    )
    stream: bool = False

    @model_validator(mode="after")
    def _refuse_logprobs(self) -> "ResponsesBody":
        if _LOGPROBS in self.include:
            raise BadField(f"{_LOGPROBS} are not given here: use /v1/chat/completions with logprobs.", "include")
        return self

    def as_chat(self) -> ChatBody:
        """Raises BadField."""
        choice = self.tool_choice
        first = [ChatTurn("system", self.instructions)] if self.instructions else []
        return chat_body(
            [*first, *_join_answers(item.turn() for item in self.input)],
            {
                "model": self.model,
                "max_tokens": self.max_output_tokens,
                "tools": [as_tool(one.name, one.description, one.parameters, strict=one.strict) for one in self.tools],
                "tool_choice": choice if isinstance(choice, str) else as_named_choice(choice.name),
                "parallel_tool_calls": self.parallel_tool_calls,
                "response_format": self._response_format(),
                "chat_template_kwargs": self.chat_template_kwargs,
                "stream": self.stream,
                "priority": self.priority,
                **sampling_of(self),
            },
        )

    def _response_format(self) -> Json | None:
        match self.text.format:
            case FlatSchema() as format:
                return as_schema_format(format.name, format.schema_)
            case ObjectFormat():
                return {"type": "json_object"}
            case _:
                return None


def _join_answers(turns: Iterable[ChatTurn]) -> list[ChatTurn]:
    """An answer's reasoning, text and calls come as items of their own, and are one turn."""
    joined: list[ChatTurn] = []
    for turn in turns:
        before = joined[-1] if joined else None
        if before is None or turn.role != "assistant" or before.role != "assistant" or _begins_anew(before, turn):
            joined.append(turn)
        else:
            joined[-1] = replace(
                before,
                text=before.text + turn.text,
                reasoning=(before.reasoning or "") + (turn.reasoning or "") or None,
                calls=(*before.calls, *turn.calls),
            )
    return joined


def _begins_anew(before: ChatTurn, turn: ChatTurn) -> bool:
    """Whether what follows of the assistant is another answer: thought comes first, and text comes once."""
    return bool((before.text and turn.text) or (turn.reasoning and (before.text or before.calls)))
