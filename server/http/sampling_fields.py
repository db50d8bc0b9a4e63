"""What a body may say about how its tokens are drawn: OpenAI's fields and vLLM's, made one rule of the engine's."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field, FiniteFloat, WithJsonSchema

from graft.hub.chat.words import GenerationDefaults
from graft.hub.request_body import Body
from graft.server.http.field_types import BadField, Text
from graft.server.sampling.params import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INT64 = 1 << 63
MAX_BIASES = 4096
MAX_BIAS = 100
MAX_PENALTY = 2
MAX_REPETITION = 100  # a divisor that stays far from what a float32 can't hold
MAX_BAD_WORDS = 1024
MAX_WORD_CHARS = 256
MAX_ALLOWED = 1 << 20
_TOKEN_ID = "^(0|[1-9][0-9]{0,8})$"


def _read_biases(given: object) -> object:
    """JSON's keys are texts."""
    if not isinstance(given, dict):
        return given
    if wrong := next((key for key in given if not re.fullmatch(_TOKEN_ID, str(key))), None):
        raise ValueError(f"{wrong!r} is no token's id")
    return {int(key): bias for key, bias in given.items()}


_BIAS = {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}
Biases = Annotated[
    dict[int, Annotated[FiniteFloat, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_BIASES),
    BeforeValidator(_read_biases),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": _TOKEN_ID},
            "additionalProperties": _BIAS,
            "maxProperties": MAX_BIASES,
            "description": "What is added to tokens' logits, by id.",
        }
    ),
]
Penalty = Annotated[FiniteFloat, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
BadWord = Annotated[Text, Field(min_length=1, max_length=MAX_WORD_CHARS)]


class SamplingBody(Body):
    """The part of a body that says how tokens are drawn."""

    temperature: FiniteFloat = Field(1.0, ge=0, le=100)
    top_p: FiniteFloat = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=INT64, description="0 or -1: no limit")
    min_p: FiniteFloat = Field(0.0, ge=0, le=1, description="Of the most probable token's probability.")
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: FiniteFloat = Field(1.0, ge=1 / MAX_REPETITION, le=MAX_REPETITION, description="1: none")
    logit_bias: Biases = Field(default_factory=dict)
    allowed_token_ids: list[int] = Field(
        default_factory=list, min_length=1, max_length=MAX_ALLOWED, description="No others are drawn."
    )
    bad_words: list[BadWord] = Field(
        default_factory=list, max_length=MAX_BAD_WORDS, description="Not written, as the base's tokens spell them."
    )
    seed: int | None = Field(None, ge=-INT64, lt=INT64)


@dataclass(frozen=True)
class Drawing:
    """How the choices of an answer are drawn. `rules`: the same for all of them but the seed."""

    rules: Sampling

    def choice(self, i: int) -> Sampling:
        """Of a prompt's choice i; a seed makes them differ, and every one repeatable."""
        seed = self.rules.seed
        return self.rules if seed is None else replace(self.rules, seed=(seed + i) % INT64)


def read_drawing(
    body: SamplingBody,
    own: GenerationDefaults,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: int,
    logprobs: int | None,
) -> Drawing:
    """`own`: the adapter's defaults, for what the body leaves open. Raises BadField for tokens that the base hasn't."""
    said = body.model_fields_set
    for field, ids in (("logit_bias", body.logit_bias), ("allowed_token_ids", body.allowed_token_ids)):
        if (outside := next((id for id in ids if not 0 <= id < vocabulary), None)) is not None:
            raise BadField(f"{field}: token {outside} lies outside the base's vocabulary of {vocabulary}.", field)
    return Drawing(
        Sampling(
            temperature=body.temperature if "temperature" in said or own.temperature is None else own.temperature,
            top_p=body.top_p if "top_p" in said or own.top_p is None else own.top_p,
            top_k=max(0, body.top_k if "top_k" in said or own.top_k is None else own.top_k),
            min_p=body.min_p if "min_p" in said or own.min_p is None else own.min_p,
            repetition_penalty=body.repetition_penalty
            if "repetition_penalty" in said or own.repetition_penalty is None
            else own.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            logit_bias=tuple(body.logit_bias.items()),
            allowed_ids=frozenset(body.allowed_token_ids),
            bad_words=tuple(dict.fromkeys(_spellings(body.bad_words, tokenizer))),
            seed=None if body.seed is None else body.seed % INT64,
            logprobs=logprobs,
        )
    )


def _spellings(words: list[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[int, ...]]:
    """Each word as it is written at a text's beginning, and within it, after a space."""
    for word in words:
        bare = word.lstrip(" ")
        for text in dict.fromkeys((word, bare, f" {bare}")):
            if ids := tuple(tokenizer.encode(text, add_special_tokens=False)):
                yield ids
