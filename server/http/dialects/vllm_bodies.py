"""Bodies and answers of the routes that vLLM has beside OpenAI's. Knows no engine."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from graft.server.http.field_types import ModelName, Text
from graft.server.http.schemas import ConversationBody, OpenBody

MAX_IDS = 1 << 20
MAX_NAME_CHARS = 200
MAX_PATH_CHARS = 4096
_PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
Name = Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARS, pattern=_PRINTABLE)]


class TokenizeTextBody(OpenBody):
    """POST /tokenize, of a text"""

    model: ModelName | None = Field(None, description="The base where nothing is said.")
    prompt: Text
    add_special_tokens: bool = Field(True, description="What the tokenizer puts before a text, as completions have it.")
    return_token_strs: bool = False


class TokenizeChatBody(OpenBody, ConversationBody):
    """POST /tokenize, of a conversation"""

    model_config = ConfigDict(extra="allow")

    model: ModelName | None = Field(None, description="The base where nothing is said.")
    add_special_tokens: bool = Field(False, description="In front of what the chat template makes.")
    return_token_strs: bool = False


class DetokenizeBody(OpenBody):
    """POST /detokenize"""

    not_honoured: ClassVar[Mapping[str, tuple[object, ...]]] = {"skip_special_tokens": (False,)}

    model: ModelName | None = Field(None, description="All have the base's tokens.")
    tokens: list[int] = Field(max_length=MAX_IDS)


class LoadBody(OpenBody):
    """POST /v1/load_lora_adapter"""

    not_honoured: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    lora_name: Name = Field(description="What it is called from now on.")
    lora_path: Annotated[Text, Field(min_length=1, max_length=MAX_PATH_CHARS, pattern=_PRINTABLE)] = Field(
        description="A folder's absolute path, or a name in the registry or hub: ns/name, ns/name@rev."
    )
    load_inplace: bool = Field(False, description="In place of what has the name.")
    base_model_name: Text | None = None


class UnloadBody(OpenBody):
    """POST /v1/unload_lora_adapter"""

    not_honoured: ClassVar[Mapping[str, tuple[object, ...]]] = {}

    lora_name: Name


class Tokens(BaseModel):
    """An answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(BaseModel):
    """An answer of /detokenize."""

    prompt: str


class TokenizerInfo(BaseModel):
    """An answer of /tokenizer_info: what a client needs to make prompts as they are made here."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    model_max_length: int
    chat_template: str | None


class Version(BaseModel):
    """An answer of /version."""

    version: str
