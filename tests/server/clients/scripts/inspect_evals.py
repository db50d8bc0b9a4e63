"""inspect-ai: evaluations by its openai-api and vllm providers, multiple choice, log-probabilities, tools, schemas, a full context."""

import os
from typing import Literal

from common import ADAPTERS, BASE, V1, run
from pydantic import BaseModel

os.environ |= {"GRAFT_BASE_URL": V1, "GRAFT_API_KEY": "none", "INSPECT_LOG_DIR": "logs"}

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import choice, includes
from inspect_ai.solver import generate, multiple_choice, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import json_schema

settings = {"display": "none", "log_format": "json", "fail_on_error": True}


class Kind(BaseModel):
    """It sends no limits of numbers, so that a random model's would have no end."""

    kind: Literal["cat", "dog"]


@tool
def add():
    async def execute(a: int) -> str:
        """Adds.

        Args:
            a: A number.
        """
        return "3"

    return execute


def served(model, provider="openai-api/graft", **more):
    config = GenerateConfig(**{"temperature": 0, "max_tokens": 60} | more)
    where = {"base_url": V1, "api_key": "none"}
    return get_model(f"{provider}/{model}", config=config, memoize=False, **where)


def score(task, model):
    [log] = eval(task, model=model, **settings)
    assert log.status == "success", log.error
    return log


def texts():
    task = Task(dataset=[Sample(input="sum", target="No tool.")], solver=generate(), scorer=includes())
    for provider in ("openai-api/graft", "vllm"):
        log = score(task, served(BASE, provider))
        assert log.results.scores[0].metrics["accuracy"].value == 1.0
        assert log.stats.model_usage


def choices():
    samples = [Sample(input=f"Question {i}", choices=["yes", "no"], target="A") for i in range(8)]
    for model in ADAPTERS:
        score(Task(dataset=samples, solver=multiple_choice(), scorer=choice()), served(model))


def log_probabilities():
    """16 samples at once, each token with its five likeliest."""
    samples = [Sample(input=f"Question {i}", target="A") for i in range(16)]
    for model in ADAPTERS:
        task = Task(dataset=samples, solver=generate(), scorer=includes())
        log = score(task, served(model, logprobs=True, top_logprobs=5, max_tokens=8, max_connections=16))
        for sample in log.samples:
            tokens = sample.output.choices[0].logprobs.content
            assert tokens and all(len(token.top_logprobs) == 5 and token.logprob <= 0 for token in tokens), tokens


def tools():
    log = score(
        Task(
            dataset=[Sample(input="sum", target="3")],
            solver=[use_tools(add()), generate(tool_calls="single")],
            scorer=includes(),
        ),
        served(BASE),
    )
    assert any(message.role == "tool" for message in log.samples[0].messages), log.samples[0].messages


def schemas():
    schema = ResponseSchema(name="animal", json_schema=json_schema(Kind))
    for model in ADAPTERS:
        task = Task(dataset=[Sample(input="x", target="legs")], solver=generate(), scorer=includes())
        log = score(task, served(model, response_schema=schema, max_tokens=900))
        Kind.model_validate_json(log.samples[0].output.completion)


def refusals():
    task = Task(dataset=[Sample(input="a" * 20_000, target="a")], solver=generate(), scorer=includes())
    assert score(task, served(BASE)).samples[0].output.stop_reason == "model_length"


run(texts, choices, log_probabilities, tools, schemas, refusals)
