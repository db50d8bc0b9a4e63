"""litellm's SDK: chats, streams, tools, schemas, text completions, embeddings, its bridges to Responses and Messages."""

import asyncio
import json

import litellm
from common import ADAPTERS, ARGUMENTS, BASE, LEARNED_TOOL, MODELS, SUM, TOOL, V1, Animal, run, said

plain = [{"role": "user", "content": "Where do bees live?"}]
here = {"api_base": V1, "api_key": "none"}
short = {"temperature": 0, "max_tokens": 12, **here}


def chats():
    for provider in ("openai", "hosted_vllm"):
        for model in MODELS:
            answer = litellm.completion(model=f"{provider}/{model}", messages=plain, **short)
            assert answer.choices[0].message.content == said(model, plain)


def streams():
    for model in MODELS:
        chunks = list(litellm.completion(model=f"openai/{model}", messages=plain, stream=True, **short))
        whole = litellm.stream_chunk_builder(chunks, messages=plain)
        assert whole.choices[0].message.content == said(model, plain)

    async def ask(model):
        return (await litellm.acompletion(model=f"openai/{model}", messages=plain, **short)).choices[0].message.content

    async def all_of_them():
        return await asyncio.gather(*map(ask, MODELS))

    assert asyncio.run(all_of_them()) == [said(model, plain) for model in MODELS]


def tools():
    answer = litellm.completion(model=f"openai/{BASE}", messages=SUM, tools=[LEARNED_TOOL], temperature=0, **here)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "add" and json.loads(call.function.arguments) == ARGUMENTS
    for model in ADAPTERS:
        forced = litellm.completion(
            model=f"openai/{model}", messages=plain, tools=[TOOL], tool_choice="required", max_tokens=600,
            parallel_tool_calls=False, **here,
        )  # fmt: skip
        assert 0 <= json.loads(forced.choices[0].message.tool_calls[0].function.arguments)["a"] <= 9


def schemas():
    for model in ADAPTERS:
        made = litellm.completion(
            model=f"openai/{model}", messages=plain, response_format=Animal, max_tokens=600, **here
        )
        Animal.model_validate_json(made.choices[0].message.content)


def texts():
    answer = litellm.text_completion(model=f"text-completion-openai/{ADAPTERS[0]}", prompt="One", **short)
    assert answer.choices[0].text
    vectors = litellm.embedding(model=f"openai/{ADAPTERS[0]}", input=["a", "b"], **here)
    assert len(vectors.data) == 2 and len(vectors.data[0]["embedding"]) == 32


def bridges():
    made = litellm.responses(model=f"openai/{BASE}", input="sum", temperature=0, **here)
    assert made.output[-1].content[0].text == "No tool."
    message = asyncio.run(
        litellm.anthropic.messages.acreate(model=f"openai/{BASE}", messages=SUM, max_tokens=50, temperature=0, **here)
    )
    assert "No tool." in str(message["content"])


def refusals():
    try:
        litellm.completion(model=f"openai/{BASE}", messages=[{"role": "user", "content": "a" * 20_000}], **short)
    except litellm.ContextWindowExceededError:
        pass
    else:
        raise AssertionError("a text of 20,000 tokens was taken")


run(chats, streams, tools, schemas, texts, bridges, refusals)
