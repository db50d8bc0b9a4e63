"""Bodies of POST /v1/messages and /v1/messages/count_tokens, Anthropic's API, as the chats they stand for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from graft.hub.chat.turns import ChatTurn, PastCall
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
from graft.server.http.request_fields import NEUTRAL
from graft.server.http.response_shapes import Json
from graft.server.http.sampling_fields import INT64, SamplingBody
from graft.server.http.schemas import ChatBody, Stops, WaitingBody

_BLOCKS = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}


def _require_type(given: object, types: Sequence[str], what: str = "blocks") -> object:
    """Refuse by its type what is none of `types`. Raises ValueError."""
    if isinstance(given, dict) and (type := given.get("type")) not in types:
        raise ValueError(f"this server takes {what} of the type {' or '.join(types)} only, not {type!r:.100}")
    return given


def _require_text(given: object) -> object:
    return _require_type(given, ("text",))


def _require_custom(given: object) -> object:
    return _require_type({"type": "custom"} | given if isinstance(given, dict) else given, ("custom",), "tools")


class TextBlock(LooseBody):
    """Text."""

    type: Literal["text"]
    text: Text


TextBlocks = Annotated[
    Annotated[Text, Tag("(text)")]
    | Annotated[
        list[Annotated[TextBlock, BeforeValidator(_require_text)]],
        Tag("(blocks)"),
    ],
    Discriminator(lambda given: "(blocks)" if isinstance(given, list) else "(text)"),
]


class CallBlock(LooseBody):
    """A call that an earlier answer made."""

    type: Literal["tool_use"]
    id: Text
    name: Annotated[Text, Field(min_length=1)]
    input: dict[str, object] = Field(default_factory=dict)


class ResultBlock(LooseBody):
    """What a call came to. That it is an error is for its text to say."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: TextBlocks = ""


class ThinkingBlock(LooseBody):
    """What an earlier answer thought first."""

    type: Literal["thinking"]
    thinking: Text = ""


class HiddenThinkingBlock(LooseBody):
    """The same, for no one to read: left aside."""

    type: Literal["redacted_thinking"]


Block = Annotated[
    Annotated[TextBlock, Tag("(text)")]
    | Annotated[CallBlock, Tag("(tool_use)")]
    | Annotated[ResultBlock, Tag("(tool_result)")]
    | Annotated[ThinkingBlock, Tag("(thinking)")]
    | Annotated[HiddenThinkingBlock, Tag("(redacted_thinking)")],
    Discriminator(lambda given: f"({given['type'] if isinstance(given, dict) else given.type})"),
]


class TurnBody(LooseBody):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[Text, Tag("(text)")] | Annotated[list[Block], Tag("(blocks)")],
        Discriminator(lambda given: "(blocks)" if isinstance(given, list) else "(text)"),
    ]

    @model_validator(mode="before")
    @classmethod
    def _require_blocks(cls, given: object) -> object:
        """Refuse by its type a block that a turn of this role does not hold here."""
        content = given.get("content") if isinstance(given, dict) else None
        if isinstance(given, dict) and isinstance(content, list):
            types = _BLOCKS.get(str(given.get("role")), _BLOCKS["user"])
            for block in content:
                if not isinstance(block, dict):
                    raise ValueError("content must be a text or a list of blocks")
                _require_type(block, types)
        return given

    def turns(self) -> Iterator[ChatTurn]:
        """Results of calls are turns of their own."""
        blocks = [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        if self.role == "assistant":
            yield _answer(blocks)
            return
        text = ""
        for block in blocks:
            match block:
                case TextBlock():
                    text += block.text
                case ResultBlock():
                    if text:
                        yield ChatTurn(self.role, text)
                    text = ""
                    yield ChatTurn("tool", _text(block.content), call_id=block.tool_use_id)
        if text or not any(isinstance(block, ResultBlock) for block in blocks):
            yield ChatTurn(self.role, text)


def _answer(blocks: Iterable[Block]) -> ChatTurn:
    text, thoughts, calls = "", "", []
    for block in blocks:
        match block:
            case TextBlock():
                text += block.text
            case ThinkingBlock():
                thoughts += block.thinking
            case CallBlock():
                calls.append(PastCall(block.id, block.name, block.input))
    return ChatTurn("assistant", text, reasoning=thoughts or None, calls=tuple(calls))


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content)


class CustomTool(LooseBody):
    """A function that the model may call."""

    type: Literal["custom"] = "custom"
    name: ToolName
    description: Text | None = None
    input_schema: dict[str, object] = Field(description="A JSON schema of the arguments.")
    strict: bool = Field(False, description="Calls fit the schema, where the model's way of calling can be held to it.")


class ToolChoiceBody(OptionsBody):
    """Whether there has to be a call, and of which tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _require_name(self) -> "ToolChoiceBody":
        if self.type == "tool" and self.name is None:
            raise ValueError("names no tool")
        return self

    def as_chat(self) -> str | Json:
        if self.name is not None and self.type == "tool":
            return as_named_choice(self.name)
        return {"any": "required"}.get(self.type, self.type)


class ThinkingConfig(OptionsBody):
    """Whether the model is to think first, if its chat template leaves that open (`enable_thinking`)."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(OptionsBody):
    """JSON that a schema holds valid."""

    type: Literal["json_schema"]
    schema_: dict[str, object] = Field(alias="schema")


class OutputConfig(OptionsBody):
    """What the text has to be."""

    format: OutputFormat | None = None


class CountTokensBody(WaitingBody):
    """POST /v1/messages/count_tokens"""

    model_config = ConfigDict(extra="allow")
    not_honoured: ClassVar = {
        **NEUTRAL,
        "container": (),
        "mcp_servers": ([],),
        "output_format": (),
    }

    model: ModelName
    messages: list[TurnBody] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: TextBlocks = ""
    tools: Annotated[
        list[Annotated[CustomTool, BeforeValidator(_require_custom)]],
        Field(max_length=MAX_TOOLS),
    ] = Field(default_factory=list)
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, object] = Field(
        default_factory=dict, description="The chat template's own switches."
    )

    def as_chat(self) -> ChatBody:
        """Raises BadField."""
        turns = [ChatTurn("system", text)] if (text := _text(self.system)) else []
        turns += [turn for message in self.messages for turn in message.turns()]
        return chat_body(turns, self._chat_fields(turns[-1]))

    def _chat_fields(self, last: ChatTurn) -> Json:
        fields: Json = {"model": self.model, "priority": self.priority}
        if self.tools:
            fields["tools"] = [
                as_tool(one.name, one.description, one.input_schema, strict=one.strict) for one in self.tools
            ]
        if self.tool_choice is not None:
            fields["tool_choice"] = self.tool_choice.as_chat()
            fields["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        thinks = {} if self.thinking is None else {"enable_thinking": self.thinking.type != "disabled"}
        fields["chat_template_kwargs"] = thinks | self.chat_template_kwargs
        if self.output_config is not None and (format := self.output_config.format) is not None:
            fields["response_format"] = as_schema_format("output", format.schema_)
        if last.role == "assistant":  # the answer goes on with it
            if last.calls:
                raise BadField("messages: the last one calls tools, and what they came to has to follow.", "messages")
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return fields


class MessagesBody(CountTokensBody, SamplingBody):
    """POST /v1/messages"""

    model_config = ConfigDict(extra="allow")
    not_honoured: ClassVar = {**CHAT_FIELDS, **CountTokensBody.not_honoured}

    max_tokens: int = Field(ge=1, lt=INT64)
    stop_sequences: Stops = Field(default_factory=list)
    stream: bool = False

    def _chat_fields(self, last: ChatTurn) -> Json:
        own: Json = {"max_tokens": self.max_tokens, "stop": self.stop_sequences, "stream": self.stream}
        return super()._chat_fields(last) | sampling_of(self) | own
