"""anthropic: messages, streams, tools, counts, schemas, errors, of the base and of adapters of each kind."""

import asyncio
import json
from typing import Literal

import anthropic
from common import ADAPTERS, ARGUMENTS, BASE, LEARNED_TOOL, MODELS, PARAMETERS, SUM, URL, listed, post, run
from pydantic import BaseModel

ADD = {
    "name": "add",
    "description": "Adds.",
    "input_schema": LEARNED_TOOL["function"]["parameters"],
}
BOUND = {"name": "add", "input_schema": PARAMETERS}
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
asked = {"model": BASE, "max_tokens": 100, "extra_body": {"temperature": 0}}


def whole():
    message = client.messages.create(messages=SUM, **asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == ("Hm.", "No tool.")
    assert message.stop_reason == "end_turn" and message._request_id and message.usage.output_tokens > 5
    again = [*SUM, {"role": "assistant", "content": message.content}, *SUM]  # the answer goes back as it came
    assert client.messages.create(messages=again, **asked).role == "assistant"


def tools():
    [call] = client.messages.create(messages=SUM, tools=[ADD], **asked).content
    assert (call.type, call.name, call.input) == ("tool_use", "add", ARGUMENTS)
    past = {"type": "tool_use", "id": call.id, "name": "add", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "3"}
    turns = [*SUM, {"role": "assistant", "content": [past]}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=turns, tools=[ADD], **asked).content[0].text == "It is 3."
    forced = client.messages.create(messages=SUM, tools=[ADD], tool_choice={"type": "tool", "name": "add"}, **asked)
    assert forced.stop_reason == "tool_use" and isinstance(forced.content[0].input["a"], int)


def streams():
    with client.messages.stream(messages=SUM, **asked) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "No tool." and [block.type for block in message.content] == ["thinking", "text"]
    with client.messages.stream(messages=SUM, tools=[ADD], **asked) as stream:
        events = [event.type for event in stream]
        message = stream.get_final_message()
    assert events[0] == "message_start" and events[-1] == "message_stop" and "input_json" in events
    assert (message.content[0].input, message.stop_reason) == (ARGUMENTS, "tool_use")
    assert message.usage.output_tokens == client.messages.create(messages=SUM, tools=[ADD], **asked).usage.output_tokens
    raw = [event.type for event in client.messages.create(messages=SUM, stream=True, **asked)]
    assert raw[0] == "message_start" and "content_block_delta" in raw and raw[-1] == "message_stop"


def counts():
    counted = client.messages.count_tokens(model=BASE, messages=SUM, tools=[ADD]).input_tokens
    usage = client.messages.create(messages=SUM, tools=[ADD], **asked).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def shown(message):
    return [block.model_dump(exclude_none=True) for block in message.content]


def adapters():
    """Of a random model no more can be known than what a plain request gets, and what a tool or a schema says."""
    short = asked | {"max_tokens": 12}
    for model in ADAPTERS:
        here = short | {"model": model}
        plain = post("/v1/messages", {"model": model, "max_tokens": 12, "messages": SUM, "temperature": 0})
        message = client.messages.create(messages=SUM, **here)
        assert shown(message) == plain["content"]
        assert message.stop_reason == plain["stop_reason"] and message.model == model
        with client.messages.stream(messages=SUM, **here) as stream:
            assert shown(stream.get_final_message()) == plain["content"]
        with client.messages.stream(
            messages=SUM, tools=[BOUND], tool_choice={"type": "any", "disable_parallel_tool_use": True},
            **here | {"max_tokens": 600},
        ) as stream:  # fmt: skip
            [call] = stream.get_final_message().content
        assert call.name == "add" and 0 <= call.input["a"] <= 9
        past = {"type": "tool_use", "id": call.id, "name": "add", "input": call.input}
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "3"}
        turns = [*SUM, {"role": "assistant", "content": [past]}, {"role": "user", "content": [result]}]
        assert client.messages.create(messages=turns, tools=[BOUND], **here).usage.output_tokens > 0
    assert len({str(client.messages.create(messages=SUM, **short | {"model": name}).content) for name in MODELS}) > 1


class Answer(BaseModel):
    """What has to come."""

    verdict: Literal["yes", "no"]


def schemas():
    for model in MODELS:
        parsed = client.messages.parse(
            messages=SUM, output_format=Answer, **asked | {"model": model, "max_tokens": 600}
        )
        assert parsed.parsed_output.verdict in ("yes", "no")


def errors():
    too_long = "x" * (listed(BASE)["max_model_len"] + 1)  # each letter is a token
    expected = [
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        (anthropic.BadRequestError, {"messages": SUM, "extra_body": {"container": "x"}}, "container"),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": too_long}]}, "prompt is too long"),
        (anthropic.NotFoundError, {"messages": SUM, "model": "nobody"}, "nobody"),
        (anthropic.RequestTooLargeError, {"messages": [{"role": "user", "content": "x" * (33 << 20)}]}, "larger than"),
    ]
    for kind, change, words in expected:
        try:
            client.messages.create(**(asked | change))
        except kind as error:
            assert words in error.body["error"]["message"] and error.body["type"] == "error" and error.request_id
        else:
            raise AssertionError(f"{json.dumps(change)} was taken")


def asynchronous():
    async def both():
        async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as other:
            made = await asyncio.gather(
                *(other.messages.create(messages=SUM, **asked | {"model": name}) for name in MODELS * 2)
            )
            assert made[0].content[1].text == "No tool."
            for one, again in zip(made[: len(MODELS)], made[len(MODELS) :], strict=True):
                assert one.content == again.content, one.model
            async with other.messages.stream(messages=SUM, **asked) as stream:
                assert "".join([text async for text in stream.text_stream]) == "No tool."

    asyncio.run(both())


run(whole, tools, streams, counts, adapters, schemas, errors, asynchronous)
