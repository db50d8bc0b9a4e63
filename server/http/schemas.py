"""The bodies that clients send, checked field by field (request_fields.py says what becomes of fields that are not ours).

A mistake becomes a BadField that names the field. `null` means "not given", as in OpenAI's API. Knows no engine.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from graft.hub.chat.words import MAX_TEMPLATE_BYTES
from graft.hub.request_body import MAX_DEPTH, AnyBody, Body, BodyError, check_body, is_shallow
from graft.server.chat.request import ChatRequest
from graft.server.http.constraint_fields import ConstrainedBody
from graft.server.http.field_types import BadField, ModelName, Text, check_encodable
from graft.server.http.message_bodies import MAX_MESSAGES, MAX_TOOLS, MessageBody, ToolBody, ToolChoice, tool_use
from graft.server.http.request_fields import IGNORED, NEUTRAL, find_refused, guess_field, name_here
from graft.server.http.sampling_fields import INT64, SamplingBody
from graft.server.structured.constraint import Constraint

MAX_CHOICES = 1024  # prompts x n of one request
MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
_MOST_SHOWN = 40  # characters of what is wrong


def _read_prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """A string, strings, ids, or lists of ids -> prompts."""
    if isinstance(value, str):
        return (check_encodable(value),)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists, not empty")
    if all(type(item) is str for item in value):
        return tuple(check_encodable(item) for item in value)
    if all(type(item) is int for item in value):
        return (tuple(value),)
    if all(type(item) is list and item and all(type(id) is int for id in item) for item in value):
        return tuple(tuple(item) for item in value)
    raise ValueError("must hold strings, or token ids, or lists of token ids (none of them empty), not a mixture")


def _to_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_TEXTS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
Prompts = Annotated[
    tuple[str | tuple[int, ...], ...],
    BeforeValidator(_read_prompts),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS, _IDS, {"type": "array", "items": _IDS, "minItems": 1}]}),
]
_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
Stops = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_to_list),
    WithJsonSchema({"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]}),
]


class OpenBody(Body):
    """A body in which fields that nobody here knows are left aside, and kept apart as `ignored`."""

    model_config = ConfigDict(extra="allow")
    not_honoured: ClassVar[Mapping[str, tuple[object, ...]]] = NEUTRAL  # unless it is one of the body's own

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, given: object) -> object:
        """Drop what may be ignored; refuse by name what can't be honoured, and what is meant for a field of ours."""
        if not isinstance(given, dict):
            return given
        neutral = {key: value for key, value in cls.not_honoured.items() if key not in cls.model_fields}
        if key := find_refused(given, neutral):
            name = name_here(key, cls.model_fields)
            raise BadField(f"{key} is not supported here: {f'use {name}' if name else 'leave it out'}.", key)
        rest = {key: value for key, value in given.items() if key not in neutral}
        for key in rest.keys() - cls.model_fields.keys() - IGNORED:
            if rest[key] is not None and (name := guess_field(key, cls.model_fields, rest)):
                raise BadField(f"Unknown field {key!r}: did you mean {name!r}?", key)
        return rest

    @property
    def ignored(self) -> list[str]:
        """Fields that were given and are of no effect here, those of objects in it too: text.verbosity. Not those in lists."""
        return sorted(_left_aside(self))


def _left_aside(body: BaseModel) -> Iterator[str]:
    yield from body.model_extra or ()
    for name in type(body).model_fields:
        if isinstance(part := getattr(body, name), BaseModel):
            yield from (f"{name}.{left}" for left in _left_aside(part))


class WaitingBody(OpenBody):
    """A body whose answer is waited for: how long, and before what else of the same client's."""

    timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Seconds within which the answer is complete, or given up."
    )
    priority: int = Field(
        0, ge=-INT64, lt=INT64, description="Of a client's own requests that wait, lower ones start first."
    )


class StreamOptions(Body):
    """What a stream carries besides the text."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool = False
    continuous_usage_stats: bool = False  # the usage so far in every event
    include_obfuscation: bool = False  # accepted; nothing is padded here


class GenerationBody(WaitingBody, ConstrainedBody, SamplingBody):
    """What completions and chat have in common."""

    model_config = ConfigDict(extra="allow")

    model: ModelName
    n: int = Field(1, ge=1, le=MAX_N)
    best_of: int | None = Field(
        None, ge=1, le=MAX_N, description="So many are made, and the n of the highest mean log-probability given."
    )
    max_tokens: int | None = Field(None, ge=0, lt=INT64)
    min_tokens: int = Field(0, ge=0, lt=INT64)
    stop: Stops = Field(default_factory=list)
    stop_token_ids: list[int] = Field(default_factory=list, max_length=MAX_STOPS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise BadField("stream_options may only be given together with stream=true.", "stream_options")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise BadField(f"min_tokens ({self.min_tokens}) is above max_tokens ({self.max_tokens}).", "min_tokens")
        if self.made < self.n:
            raise BadField(f"best_of ({self.made}) is below n ({self.n}).", "best_of")
        if self.stream and self.made > self.n:
            raise BadField("The best of several is known at their end: best_of above n can't be streamed.", "best_of")
        if self.stream and self.prompt_logprobs is not None:
            raise BadField("prompt_logprobs come with whole answers only: leave stream out.", "prompt_logprobs")
        return self

    @property
    def made(self) -> int:
        """How many choices are made of each prompt."""
        return self.n if self.best_of is None else self.best_of


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    prompt: Prompts
    suffix: Text = Field("", description="What follows the text that is to be written, of a base that can fill a gap.")
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_choices(self) -> "CompletionBody":
        if len(self.prompt) * self.made > MAX_CHOICES:
            param = "prompt" if self.made == 1 else "n" if self.made == self.n else "best_of"
            raise BadField(f"prompts times choices may be {MAX_CHOICES} at most.", param)
        return self


class ConversationBody(Body):
    """The part of a body that is a conversation."""

    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[ToolBody] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = Field("auto", description="auto, none, required, or the name of a function.")
    parallel_tool_calls: bool = True
    chat_template_kwargs: dict[str, object] = Field(
        default_factory=dict, description="The chat template's own switches."
    )
    chat_template: Text = Field(
        "", max_length=MAX_TEMPLATE_BYTES, description="Instead of the adapter's or the base's."
    )
    add_generation_prompt: bool = Field(True, description="false: the prompt ends with the last message.")
    continue_final_message: bool = Field(False, description="The answer goes on with the last message.")

    @model_validator(mode="after")
    def _end_once(self) -> "ConversationBody":
        if (
            self.continue_final_message
            and self.add_generation_prompt
            and "add_generation_prompt" in self.model_fields_set
        ):
            raise BadField("continue_final_message goes with add_generation_prompt=false.", "continue_final_message")
        return self

    def as_request(self, answer: Constraint | None = None) -> ChatRequest:
        """`answer`: what an answer must be that is no call. Raises BadField where tools and tool_choice don't agree."""
        return ChatRequest(
            tuple(message.as_turn() for message in self.messages),
            tool_use(self.tools, self.tool_choice, self.parallel_tool_calls),
            self.chat_template_kwargs,
            opens_reply=self.add_generation_prompt and not self.continue_final_message,
            continues=self.continue_final_message,
            answer=answer,
        )


class ChatBody(GenerationBody, ConversationBody):
    """POST /v1/chat/completions"""

    model_config = ConfigDict(extra="allow")

    max_completion_tokens: int | None = Field(None, ge=0, lt=INT64)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: Literal[False] = False  # of completions; accepted where it asks nothing

    @model_validator(mode="after")
    def _agree(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise BadField("top_logprobs may only be given together with logprobs=true.", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise BadField("max_tokens and max_completion_tokens differ: give one of them.", "max_completion_tokens")
        limit = self.limit
        if limit is not None and self.min_tokens > limit:
            raise BadField(f"min_tokens ({self.min_tokens}) is above max_completion_tokens ({limit}).", "min_tokens")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class AdapterBody(Body):
    """POST /v1/adapters/load and /v1/adapters/unload"""

    model: ModelName


class PinBody(AdapterBody):
    """POST /v1/adapters/pin"""

    pinned: bool = True


def parse(schema: type[AnyBody], data: bytes) -> AnyBody:
    """A request's body as `schema`. Raises BadField."""
    return check(schema, parse_json(data))


def check(schema: type[AnyBody], given: object) -> AnyBody:
    """What JSON stands for as `schema`. Raises BadField."""
    try:
        return check_body(schema, given)
    except BodyError as error:
        raise BadField(str(error), error.param) from None


def parse_json(data: bytes) -> object:
    """Raises BadField for what is no JSON, what is nested too deeply, and for numbers that a float can't hold."""
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant, parse_float=_read_float)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise BadField(f"The body is not JSON: {str(error).splitlines()[0]}.") from None
    if not is_shallow(value):
        raise _too_deep()
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _read_float(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:_MOST_SHOWN]} is more than a number can hold")
    return number


def _too_deep() -> BadField:
    return BadField(f"The body holds lists and objects within each other, more than {MAX_DEPTH} deep.")
