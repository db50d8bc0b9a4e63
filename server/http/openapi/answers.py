"""What answers look like: for their description alone, they are written as they are (response_shapes.py, adapters.py)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel


class Shown(BaseModel):
    """Nothing but what is listed."""

    model_config = ConfigDict(extra="forbid")


class Alternative(Shown):
    """A token that was likely here."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Alternative):
    """A token of a chat's answer."""

    top_logprobs: list[Alternative]


class ChatLogprobs(Shown):
    """Log-probabilities of a chat's answer."""

    content: list[ChatToken]
    refusal: None


class CompletionLogprobs(Shown):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptToken(Shown):
    """A token of the prompt, or one that was likely in its place. `rank` is null below those that were asked for."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = Annotated[
    list[dict[str, PromptToken] | None], Field(description="By id; only where prompt_logprobs asks for them.")
]


class PromptDetails(Shown):
    """Of the prompt's tokens, those that were found in the cache."""

    cached_tokens: int


class Usage(Shown):
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class CompletionChoice(Shown):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: PromptLogprobs | None = None


class _Answer(Shown):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class CompletionAnswer(_Answer):
    """Continuations of prompts."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class CalledFunction(Shown):
    """`arguments`: JSON, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Shown):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Shown):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Shown):
    """One answer to a conversation."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatAnswer(_Answer):
    """Answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_logprobs: PromptLogprobs | None = None


class TemplateShown(Shown):
    """An adapter's own chat template."""

    sha256: str
    characters: int


class WordsShown(Shown):
    """What an adapter brings for text."""

    chat_template: TemplateShown | None
    stop_token_ids: list[int]
    stop_tokens: list[str]
    stop: list[str]
    generation: dict[str, float]
    left_aside: list[str]


class Tiers(Shown):
    """Bytes of memory."""

    host: int
    device: int


class ProofShown(Shown):
    """What came of an adapter's proof."""

    outcome: str
    why: str | None


class AdapterShown(Shown):
    """An adapter: what it is, and in which memory."""

    id: str
    digest: str | None
    revision: str | None
    kind: str | None
    variant: str | None
    task: str | None
    bytes: int | None
    state: Literal["disk", "host", "device"]
    bytes_by_tier: Tiers
    pinned: bool
    virtual_tokens: int
    proof: ProofShown | None
    words: WordsShown | None
    error: str | None


class AdapterList(Shown):
    """All adapters that can be named."""

    object: Literal["list"]
    data: list[AdapterShown]


class AdapterModel(AdapterShown):
    """An adapter as a model."""

    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str


class BaseModelShown(Shown):
    """The base."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    fingerprint: str
    kind: Literal["base"]
    parameters: int
    max_model_len: int


class ModelList(Shown):
    """The base and its adapters."""

    object: Literal["list"]
    data: list[BaseModelShown | AdapterModel]


class ModelAnswer(RootModel[BaseModelShown | AdapterModel]):
    """One of them."""


class Health(Shown):
    """Alive."""

    status: Literal["ok"]


class BaseIdentityShown(Shown):
    """What all replicas have in common."""

    fingerprint: str
    dtype: str
    content: str


class ReplicaShown(Shown):
    """An engine as one of several."""

    base: BaseIdentityShown
    under_way: int
    limit: int
    resident: dict[str, int]
    room: int
    pinned: list[str]


class Readiness(Shown):
    """Takes requests."""

    status: Literal["ready"]
    model: str
    keys: Literal["outdated"] = Field("outdated", description="Only where the key file can't be used as it is by now.")
