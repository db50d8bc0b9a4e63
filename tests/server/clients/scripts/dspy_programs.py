"""dspy: its LM over chats, completions and Responses, predictions by the JSON adapter, embeddings."""

from typing import Literal

import dspy
from common import ADAPTERS, BASE, MODELS, V1, run, said

plain = [{"role": "user", "content": "Where do bees live?"}]


def lm(model, kind="chat", **more):
    settings = {"temperature": 0, "max_tokens": 12, "cache": False, "num_retries": 0} | more
    return dspy.LM(f"openai/{model}", api_base=V1, api_key="none", model_type=kind, **settings)


class Kind(dspy.Signature):
    """Which animal."""

    question: str = dspy.InputField()
    kind: Literal["cat", "dog"] = dspy.OutputField()


def texts():
    for model in MODELS:
        assert lm(model)(messages=plain)[0] == said(model, plain)
    assert len(lm(ADAPTERS[0], temperature=1.0, n=3)(messages=plain)) == 3
    assert lm(ADAPTERS[0], "text")("One")
    assert "No tool." in str(lm(BASE, "responses", max_tokens=50)("sum"))


def predictions():
    for model in ADAPTERS:
        with dspy.context(lm=lm(model, max_tokens=900), adapter=dspy.JSONAdapter()):
            assert dspy.Predict(Kind)(question="x").kind in ("cat", "dog")


def vectors():
    made = dspy.Embedder(f"openai/{ADAPTERS[0]}", api_base=V1, api_key="none", caching=False)(["a", "b"])
    assert made.shape == (2, 32)


run(texts, predictions, vectors)
