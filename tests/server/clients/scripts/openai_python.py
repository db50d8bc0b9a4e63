"""openai: chats, streams, tools, schemas, completions, Responses, embeddings."""

import asyncio
import json

from common import ADAPTERS, ARGUMENTS, BASE, LEARNED_TOOL, MODELS, SUM, TOOL, V1, Animal, post, refused, run, said
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

client = OpenAI(base_url=V1, api_key="none", max_retries=0)
short = {"temperature": 0, "max_tokens": 12}
plain = [{"role": "user", "content": "Where do bees live?"}]


def models():
    assert {model.id for model in client.models.list()} == set(MODELS)
    assert client.models.retrieve(ADAPTERS[0]).id == ADAPTERS[0]
    try:
        client.chat.completions.create(model="absent", messages=SUM)
    except NotFoundError as error:
        assert error.code == "model_not_found"
    else:
        raise AssertionError("a model that is not there was found")


def chats():
    for model in MODELS:
        answer = client.chat.completions.create(model=model, messages=plain, **short)
        assert answer.choices[0].message.content == said(model, plain) and answer.usage.completion_tokens <= 12
    assert (
        client.chat.completions.create(model=BASE, messages=SUM, temperature=0).choices[0].message.content == "No tool."
    )
    many = client.chat.completions.create(
        model=ADAPTERS[0], messages=plain, n=3, seed=5, logprobs=True, top_logprobs=2, max_tokens=4
    )
    assert [choice.index for choice in many.choices] == [0, 1, 2]
    assert all(
        len(choice.logprobs.content) == 4 and len(choice.logprobs.content[0].top_logprobs) == 2
        for choice in many.choices
    )


def sampling():
    asked = {
        "frequency_penalty": 0.5,
        "presence_penalty": 0.1,
        "logit_bias": {"40": 5},
        "stop": ["zz"],
        "top_p": 0.9,
        "seed": 1,
    }
    first, second = (
        client.chat.completions.create(model=ADAPTERS[0], messages=plain, max_tokens=8, **asked) for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content


def streams():
    for model in MODELS:
        events = client.chat.completions.create(
            model=model, messages=plain, stream=True, stream_options={"include_usage": True}, **short
        )
        pieces = list(events)
        text = "".join(event.choices[0].delta.content or "" for event in pieces if event.choices)
        assert text == said(model, plain) and pieces[-1].usage.total_tokens > 0
    with client.chat.completions.stream(model=BASE, messages=SUM, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == "No tool."
    stream = client.chat.completions.create(model=ADAPTERS[0], messages=plain, stream=True, max_tokens=500)
    next(iter(stream))
    stream.close()


def tools():
    answer = client.chat.completions.create(model=BASE, messages=SUM, tools=[LEARNED_TOOL], temperature=0).choices[0]
    [call] = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and call.function.name == "add"
    assert json.loads(call.function.arguments) == ARGUMENTS
    history = [*SUM, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "3"}]
    assert client.chat.completions.create(model=BASE, messages=history, tools=[LEARNED_TOOL], **short).choices
    events = client.chat.completions.create(model=BASE, messages=SUM, tools=[LEARNED_TOOL], temperature=0, stream=True)
    parts = [part for event in events for part in event.choices[0].delta.tool_calls or []]
    assert (
        parts[0].function.name == "add"
        and json.loads("".join(part.function.arguments or "" for part in parts)) == ARGUMENTS
    )
    for model in ADAPTERS:
        for choice in ("required", {"type": "function", "function": {"name": "add"}}):
            made = client.chat.completions.create(
                model=model, messages=plain, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=600
            )
            [call] = made.choices[0].message.tool_calls
            assert 0 <= json.loads(call.function.arguments)["a"] <= 9


def schemas():
    for model in ADAPTERS:
        made = client.chat.completions.parse(model=model, messages=plain, response_format=Animal, max_tokens=600)
        assert isinstance(made.choices[0].message.parsed, Animal)
    loose = client.chat.completions.create(
        model=ADAPTERS[0], messages=plain, response_format={"type": "json_object"}, max_tokens=40, logit_bias={"95": 0}
    )
    assert loose.choices[0].message.content.startswith("{")


def completions():
    for model in MODELS:
        answer = client.completions.create(model=model, prompt=["One", "Two"], echo=True, logprobs=1, **short)
        assert [choice.text[:3] for choice in answer.choices] == ["One", "Two"]
        assert answer.choices[0].logprobs.token_logprobs[0] is None
        by_ids = client.completions.create(model=model, prompt=[81, 112, 103], **short).choices[0].text
        assert (
            by_ids == post("/v1/completions", {"model": model, "prompt": [81, 112, 103], **short})["choices"][0]["text"]
        )
    best = client.completions.create(model=ADAPTERS[0], prompt="a", best_of=3, n=1, max_tokens=4)
    assert len(best.choices) == 1


def responses():
    made = client.responses.create(model=BASE, input="sum", temperature=0)
    assert made.output_text == "No tool." and made.status == "completed"
    with client.responses.stream(model=BASE, input="sum", temperature=0) as stream:
        assert stream.get_final_response().output_text == "No tool."
    for model in ADAPTERS:
        assert isinstance(
            client.responses.parse(model=model, input="x", text_format=Animal, max_output_tokens=600).output_parsed,
            Animal,
        )
    refused(
        "previous_response_id", lambda: client.responses.create(model=BASE, input="a", previous_response_id="resp_1")
    )


def embeddings():
    for model in MODELS:
        [packed] = client.embeddings.create(model=model, input="bees").data  # base64, which the client unpacks
        [plain_numbers] = client.embeddings.create(model=model, input=["bees"], encoding_format="float").data
        assert max(abs(a - b) for a, b in zip(packed.embedding, plain_numbers.embedding, strict=True)) < 1e-6
        assert len(client.embeddings.create(model=model, input="bees", dimensions=8).data[0].embedding) == 8


def many_at_once():
    async def ask(model):
        answer = await AsyncOpenAI(base_url=V1, api_key="none").chat.completions.create(
            model=model, messages=plain, **short
        )
        return answer.choices[0].message.content

    async def all_of_them():
        return await asyncio.gather(*(ask(model) for model in MODELS * 4))

    assert asyncio.run(all_of_them()) == [said(model, plain) for model in MODELS] * 4


def refusals():
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aaaa"}}]}]
    refused("messages", lambda: client.chat.completions.create(model=BASE, messages=picture))
    for field, value in (("suffix", "x"), ("use_beam_search", True)):
        refused(
            field,
            lambda field=field, value=value: client.completions.create(
                model=BASE, prompt="a", extra_body={field: value}
            ),
        )
    try:
        client.completions.create(model=BASE, prompt="a" * 20_000)
    except BadRequestError as error:
        assert error.code == "context_length_exceeded" and "maximum context length" in str(error)
    else:
        raise AssertionError("a text of 20,000 tokens was taken")


run(models, chats, sampling, streams, tools, schemas, completions, responses, embeddings, many_at_once, refusals)
