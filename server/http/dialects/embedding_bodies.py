"""The body and the answer of /v1/embeddings. Knows no engine."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graft.server.http.field_types import BadField, ModelName
from graft.server.http.request_fields import ADAPTERS
from graft.server.http.sampling_fields import INT64
from graft.server.http.schemas import Prompts, WaitingBody

MAX_INPUTS = 2048


class EmbeddingsBody(WaitingBody):
    """POST /v1/embeddings"""

    model_config = ConfigDict(extra="allow")
    not_honoured: ClassVar[Mapping[str, tuple[object, ...]]] = {  # other servers', and what is done here
        **ADAPTERS,
        "add_special_tokens": (True,),
        "truncate_prompt_tokens": (),
        "truncate": (False, "NONE"),
        "messages": (),
        "prompt_name": (),
        "input_type": (),
        "instruction": ("",),
        "embed_dtype": ("float32",),
        "endianness": ("native", "little"),
        "use_activation": (True,),
    }

    model: ModelName
    input: Prompts
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32.")
    dimensions: int | None = Field(None, ge=1, lt=INT64, description="So many of the vector's first numbers are kept.")
    pooling: Literal["mean", "last"] = Field("mean", description="Of all tokens' hidden states, or the last one's.")
    normalize: bool = Field(True, description="To the length 1, once it is cut.")

    @model_validator(mode="after")
    def _check_inputs(self) -> "EmbeddingsBody":
        if len(self.input) > MAX_INPUTS:
            raise BadField(
                f"input has {len(self.input)} texts, and may have {MAX_INPUTS}: send several requests.", "input"
            )
        if "" in self.input:
            where = "input" if len(self.input) == 1 else f"input[{self.input.index('')}]"
            raise BadField(f"{where} is empty: there is nothing to embed.", "input")
        return self


class EmbeddingShown(BaseModel):
    """One text's vector, in base64 if that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """The texts' vectors, in their order."""

    object: Literal["list"]
    data: list[EmbeddingShown]
    model: str
    usage: EmbeddingUsage
