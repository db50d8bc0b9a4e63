"""dspy: its LM over chats, completions and Responses, a schema, programs with its chat and JSON adapters, embeddings."""

from typing import Literal

import dspy
from common import ADAPTERS, BASE, MODELS, V1, Animal, run, said

plain = [{"role": "user", "content": "Where do bees live?"}]


def lm(model, kind="chat", **more):
    settings = {"temperature": 0, "max_tokens": 12, "cache": False, "num_retries": 0} | more
    return dspy.LM(f"openai/{model}", api_base=V1, api_key="none", model_type=kind, **settings)


def texts():
    for model in MODELS:
        assert lm(model)(messages=plain)[0] == said(model, plain)
    assert len(lm(ADAPTERS[0], temperature=1.0, n=3)(messages=plain)) == 3
    assert lm(ADAPTERS[0], "text")("One")
    assert "No tool." in str(lm(BASE, "responses", max_tokens=50)("sum"))


def predictions():
    """Of a random model no more can be known than that a program runs and that a schema is kept to."""
    for model in ADAPTERS:
        Animal.model_validate_json(lm(model, max_tokens=900, response_format=Animal)(messages=plain)[0])
    with dspy.context(lm=lm(BASE, max_tokens=30)):
        try:
            dspy.Predict("question -> answer")(question="sum")
        except dspy.utils.exceptions.AdapterParseError as error:
            assert "LM Response" in str(error)


def thoughts():
    """A chain of thought whose fields come as JSON: dspy sends the signature's schema, which any model keeps to."""

    class Look(dspy.Signature):
        """Which animal is it?"""

        question: str = dspy.InputField()
        kind: Literal["cat", "dog"] = dspy.OutputField()

    for model in ADAPTERS:
        with dspy.context(lm=lm(model, max_tokens=3000, temperature=1.0), adapter=dspy.JSONAdapter()):
            try:
                assert dspy.ChainOfThought(Look)(question="sum").kind in ("cat", "dog")
            except dspy.utils.exceptions.AdapterParseError as error:
                # Reasons are a text without limit, which a random model may not have ended.
                assert "LM Response" in str(error)


def vectors():
    made = dspy.Embedder(f"openai/{ADAPTERS[0]}", api_base=V1, api_key="none", caching=False)(["a", "b"])
    assert made.shape == (2, 32)


run(texts, predictions, thoughts, vectors)
