"""guidance: generation, selection, regular expressions and JSON by its OpenAI and its vLLM model."""

from common import ADAPTERS, V1, Animal, run
from guidance import assistant, gen, json, select, user
from guidance.models import OpenAI
from guidance.models.experimental import VLLMModel


def programs(make):
    for model in ADAPTERS:
        lm = make(model)
        with user():
            lm += "Where do bees live?"
        with assistant():
            made = lm + gen("text", max_tokens=12)
            assert made["text"] is not None
        yield lm


def by_openai():
    for lm in programs(lambda model: OpenAI(model, base_url=V1, api_key="none")):
        with assistant():
            made = lm + json("animal", schema=Animal, max_tokens=600)
        Animal.model_validate_json(made["animal"])


def by_vllm():
    for lm in programs(lambda model: VLLMModel(model, base_url=V1, api_key="none")):
        with assistant():
            assert (lm + select(["cat", "dog"], name="kind"))["kind"] in ("cat", "dog")
        with assistant():
            assert len((lm + gen("number", regex="[0-9]{3}"))["number"]) == 3
        with assistant():
            Animal.model_validate_json((lm + json("animal", schema=Animal, max_tokens=600))["animal"])


run(by_openai, by_vllm)
