"""outlines: text, streams, and constrained generation by its OpenAI and its vLLM model."""

from typing import Literal

import outlines
from common import ADAPTERS, MODELS, V1, Animal, run, said
from openai import OpenAI
from outlines.types import CFG, Regex

plain = [{"role": "user", "content": "Where do bees live?"}]
client = OpenAI(base_url=V1, api_key="none", max_retries=0)
short = {"temperature": 0, "max_tokens": 12}


def texts():
    for model in MODELS:
        made = outlines.from_openai(client, model)
        assert made("Where do bees live?", **short) == said(model, plain)
        assert "".join(made.stream("Where do bees live?", **short)) == said(model, plain)


def schemas():
    for model in ADAPTERS:
        for make in (outlines.from_openai, outlines.from_vllm):
            Animal.model_validate_json(make(client, model)("x", Animal, max_tokens=600))


def grammars():
    for model in ADAPTERS:
        made = outlines.from_vllm(client, model)
        assert made("x", Literal["cat", "dog"], max_tokens=50) in ("cat", "dog")
        assert len(made("x", Regex(r"[0-9]{3}"), max_tokens=50)) == 3
        assert made("x", CFG('start: "yes" | "no"'), max_tokens=50) in ("yes", "no")


run(texts, schemas, grammars)
