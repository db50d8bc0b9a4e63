"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691): learned rows before the text's embeddings.

Starts from class labels, from common vocabulary, from a text, or uniformly at random. Format: HF PEFT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.hub.adapters.methods import virtual_tokens as rows
from graft.hub.adapters.methods.foreign_config import refuse_options
from graft.hub.adapters.methods.method import TRAINING_ONLY, InitContext, Method, Raw, Shape
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import GraftError

if TYPE_CHECKING:
    from torch import Tensor

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base


@dataclass(frozen=True)
class PromptConfig:
    tokens: int = 20
    init: str = field(default="vocab", metadata=TRAINING_ONLY)  # | "labels" | "text" | "random"
    text: str = field(default="", metadata=TRAINING_ONLY)  # for init=text

    def __post_init__(self) -> None:
        rows.require_tokens("prompt", self.tokens)
        if self.init not in ("vocab", "labels", "text", "random"):
            raise GraftError(f"prompt: init must be vocab, labels, text or random, not {self.init!r}.")
        if (self.init == "text") != bool(self.text):
            raise GraftError("prompt: init=text and text=... go together.")


class Prompt(Method[PromptConfig]):
    name = "prompt"
    title = "Prompt tuning"
    paper = "arXiv 2104.08691"
    Config = PromptConfig
    learning_rate = 2e-2

    def recognises(self, raw: Raw) -> bool:
        return raw.get("peft_type") == "PROMPT_TUNING"

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> PromptConfig:
        neutral = {
            "prompt_tuning_init",
            "prompt_tuning_init_text",
            "tokenizer_name_or_path",
            "tokenizer_kwargs",
        }
        refuse_options("prompt tuning", raw, rows.COMMON | neutral)
        return PromptConfig(tokens=rows.tokens_of(raw, shapes))

    def write(self, config: PromptConfig, spec: BaseSpec) -> dict[str, object]:
        header = rows.peft_rows_header("PROMPT_TUNING", config.tokens, rows.width(spec), spec.num_heads, spec)
        return {**header, "prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}

    def virtual_tokens(self, config: PromptConfig) -> int:
        return config.tokens

    def shapes(self, config: PromptConfig, spec: BaseSpec) -> dict[str, Shape]:
        rows.require_room("prompt", config.tokens, spec)
        return {rows.KEY: (config.tokens, rows.width(spec))}

    def init(self, config: PromptConfig, context: InitContext) -> dict[str, Tensor]:
        import torch

        base = context.base
        if config.init == "random":  # U(-0.5, 0.5), as in the paper
            start = torch.rand(config.tokens, rows.width(base.spec), generator=context.generator) - 0.5
            return {rows.KEY: start.to(base.device)}
        ids = torch.as_tensor(self._start_ids(config, context), device=base.device)
        with torch.no_grad():
            return {rows.KEY: base.embed(ids).float().clone()}

    def fold(self, config: PromptConfig, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        from graft.hub.adapters.serving_forms import InputRows

        return (InputRows(tensors[rows.KEY]),)

    def _start_ids(self, config: PromptConfig, context: InitContext) -> list[int]:
        vocabulary = rows.frequent_ids(config.tokens, context.base.spec.vocab_size, context.generator).tolist()
        if config.init == "vocab":
            return vocabulary
        if context.base.tokenizer is None:
            raise GraftError(f"prompt: init={config.init} needs a base with a tokenizer.")
        encode = context.base.tokenizer.encode
        if config.init == "text":
            return rows.cycle_ids(encode(config.text, add_special_tokens=False), config.tokens)
        if not context.labels:
            raise GraftError("prompt: init=labels needs data that lists its labels.")
        named = [id for label in context.labels for id in encode(" " + label, add_special_tokens=False)]
        return (named + vocabulary)[: config.tokens]
