"""What the events of streams look like: for their description alone (response_shapes.py, dialects/)."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, Field, RootModel

from graft.server.http.openapi import dialect_answers as dialects
from graft.server.http.openapi.answers import ChatLogprobs, CompletionLogprobs, Shown, Usage
from graft.server.http.openapi.failures import Error, MessagesError


@dataclass(frozen=True)
class Stream:
    """Of events with `data`, which is JSON. `named`: each is called as its type. `last`: what the last one's data is instead."""

    data: type[BaseModel]
    named: bool = True
    last: str | None = None

    def event(self, data: dict[str, object]) -> dict[str, object]:
        """The schema of one event, as OpenAPI has it. `data`: that of its JSON."""
        json = {"contentMediaType": "application/json", "contentSchema": data}
        told = json if self.last is None else {"anyOf": [json, {"const": self.last}]}
        names = {"event": {"type": "string"}} if self.named else {}
        properties = {**names, "data": {"type": "string", **told}}
        return {"type": "object", "required": [*properties], "properties": properties}


# Completions and chat completions


class _Chunk(Shown):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = Field(None, description="Only where stream_options ask for it.")


class CompletionPart(Shown):
    """What is new of a continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionChunk(_Chunk):
    """What is new."""

    object: Literal["text_completion"]
    choices: list[CompletionPart]


class FunctionPart(Shown):
    """What is new of a call. `name`: at its begin."""

    name: str | None = None
    arguments: str


class CallPart(Shown):
    """Of the call at that place. `id` and `type`: at its begin."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionPart


class MessagePart(Shown):
    """What is new of a message. `role`: at its begin."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPart] | None = None


class ChatPart(Shown):
    """What is new of an answer."""

    index: int
    delta: MessagePart
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(_Chunk):
    """What is new."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatPart]


class CompletionEvent(RootModel[CompletionChunk | Error]):
    """Data of one event."""


class ChatEvent(RootModel[ChatChunk | Error]):
    """Data of one event."""


# Responses


class ResponseBegun(dialects.Response):
    """An answer under way."""

    status: Literal["in_progress"]
    error: None
    incomplete_details: None
    usage: None


class ResponseError(Shown):
    """Why an answer failed."""

    code: str
    message: str


class ResponseFailed(dialects.Response):
    """An answer that failed."""

    status: Literal["failed"]
    error: ResponseError
    incomplete_details: None
    usage: None


class _Numbered(Shown):
    sequence_number: int


class ResponseBegins(_Numbered):
    """The answer begins."""

    type: Literal["response.created", "response.in_progress"]
    response: ResponseBegun


class ResponseEnds(_Numbered):
    """The whole answer."""

    type: Literal["response.completed", "response.incomplete"]
    response: dialects.ResponseAnswer


class ResponseFails(_Numbered):
    """The answer failed on its way."""

    type: Literal["response.failed"]
    response: ResponseFailed


class ItemEvent(_Numbered):
    """An item begins, or is whole."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: dialects.MessageOutput | dialects.ReasoningOutput | dialects.CallOutput


class _OfItem(_Numbered):
    item_id: str
    output_index: int


class _OfContent(_OfItem):
    content_index: Literal[0]


class ContentEvent(_OfContent):
    """What an item holds begins, or is whole."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: dialects.OutputText | dialects.ReasoningText


class TextDelta(_OfContent):
    """More text."""

    type: Literal["response.output_text.delta"]
    logprobs: list[str]
    delta: str


class TextDone(_OfContent):
    """A whole text."""

    type: Literal["response.output_text.done"]
    logprobs: list[str]
    text: str


class ReasoningDelta(_OfContent):
    """More of what the model thinks first."""

    type: Literal["response.reasoning_text.delta"]
    delta: str


class ReasoningDone(_OfContent):
    """All of it."""

    type: Literal["response.reasoning_text.done"]
    text: str


class ArgumentsDelta(_OfItem):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(_OfItem):
    """All of them."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


ResponseStep = (
    ResponseBegins
    | ItemEvent
    | ContentEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | ResponseEnds
    | ResponseFails
)


class ResponseEvent(RootModel[Annotated[ResponseStep, Field(discriminator="type")]]):
    """Data of one event."""


# Messages


class MessageBegun(dialects.MessageHead):
    """An answer under way."""

    stop_reason: None
    stop_sequence: None


class MessageStart(Shown):
    """The answer begins."""

    type: Literal["message_start"]
    message: MessageBegun


class Ping(Shown):
    """Nothing new."""

    type: Literal["ping"]


class BlockStart(Shown):
    """A block begins, empty."""

    type: Literal["content_block_start"]
    index: int
    content_block: dialects.TextShown | dialects.ThinkingShown | dialects.CallShown


class MoreText(Shown):
    """Of a text."""

    type: Literal["text_delta"]
    text: str


class MoreThinking(Shown):
    """Of what the model thinks first."""

    type: Literal["thinking_delta"]
    thinking: str


class MoreInput(Shown):
    """Of a call's arguments: JSON, once all of it is put together."""

    type: Literal["input_json_delta"]
    partial_json: str


class Signature(Shown):
    """That follows thought."""

    type: Literal["signature_delta"]
    signature: str


class BlockDelta(Shown):
    """More of a block."""

    type: Literal["content_block_delta"]
    index: int
    delta: Annotated[MoreText | MoreThinking | MoreInput | Signature, Field(discriminator="type")]


class BlockStop(Shown):
    """A block is whole."""

    type: Literal["content_block_stop"]
    index: int


class MessageEnd(Shown):
    """Why an answer ended."""

    stop_reason: dialects.StopReason
    stop_sequence: str | None


class MessageDelta(Shown):
    """All blocks are there."""

    type: Literal["message_delta"]
    delta: MessageEnd
    usage: dialects.MessageUsage


class MessageStop(Shown):
    """The last one."""

    type: Literal["message_stop"]


MessageStep = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | MessagesError


class MessageEvent(RootModel[Annotated[MessageStep, Field(discriminator="type")]]):
    """Data of one event."""


COMPLETIONS = Stream(CompletionEvent, named=False, last="[DONE]")
CHATS = Stream(ChatEvent, named=False, last="[DONE]")
RESPONSES = Stream(ResponseEvent)
MESSAGES = Stream(MessageEvent)
