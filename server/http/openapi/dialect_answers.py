"""What answers of Responses and Messages look like: for their description alone (dialects/responses.py, dialects/messages.py)."""

from typing import Literal

from graft.server.http.openapi.answers import Shown
from graft.server.http.response_shapes import Json

Status = Literal["in_progress", "completed", "incomplete"]  # the first in streams alone
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class OutputText(Shown):
    """Text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: list[str]
    logprobs: list[str]


class ReasoningText(Shown):
    """Text of what the model thought first."""

    type: Literal["reasoning_text"]
    text: str


class MessageOutput(Shown):
    """A message for the reader."""

    id: str
    status: Status
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningOutput(Shown):
    """What the model thought first."""

    id: str
    status: Status
    type: Literal["reasoning"]
    summary: list[str]
    content: list[ReasoningText]


class CallOutput(Shown):
    """A call that the model asks for. `arguments`: JSON, as the model wrote it."""

    id: str
    status: Status
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class Incomplete(Shown):
    """Why an answer broke off."""

    reason: Literal["max_output_tokens"]


class InputDetails(Shown):
    """Of the prompt's tokens, those that were found in the cache."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Shown):
    """Of the answer's tokens, those of what the model thought."""

    reasoning_tokens: int


class ResponseUsage(Shown):
    """Tokens counted."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Response(Shown):
    """What is the same of an answer under way, at its end, and of one that failed."""

    id: str
    object: Literal["response"]
    created_at: int
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[MessageOutput | ReasoningOutput | CallOutput]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, None]
    store: bool
    temperature: float
    text: Json
    tool_choice: str | dict[str, str]
    tools: list[Json]
    top_p: float
    truncation: Literal["disabled"]


class ResponseAnswer(Response):
    """An answer to a conversation."""

    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: Incomplete | None
    usage: ResponseUsage


class TextShown(Shown):
    """Text for the reader."""

    type: Literal["text"]
    text: str


class ThinkingShown(Shown):
    """What the model thought first."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class CallShown(Shown):
    """A call that the model asks for. `input`: its arguments; where the model wrote no JSON, {"INVALID_JSON": what it wrote}."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: Json


class MessageUsage(Shown):
    """Tokens counted; those that were found in the cache apart."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class MessageHead(Shown):
    """What is the same of an answer at its begin and at its end."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextShown | ThinkingShown | CallShown]
    usage: MessageUsage


class MessageAnswer(MessageHead):
    """An answer to a conversation."""

    stop_reason: StopReason
    stop_sequence: str | None


class TokenCount(Shown):
    """Tokens of a prompt."""

    input_tokens: int
