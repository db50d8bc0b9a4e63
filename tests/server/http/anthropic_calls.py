"""What the unmodified `anthropic` package makes of a server whose base has learned its answers by heart (learned.py).

Run by test_messages.py in an environment of the package's own: python anthropic_calls.py URL MODEL
"""

import asyncio
import json
import sys
from typing import Literal

import anthropic
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]
SUM = [{"role": "user", "content": "sum"}]
ADD = {
    "name": "add",
    "description": "Adds.",
    "input_schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}
ARGUMENTS = {"a": 1, "é": [2]}
client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
asked = {"model": MODEL, "max_tokens": 100, "extra_body": {"temperature": 0}}


def whole() -> None:
    message = client.messages.create(messages=SUM, **asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == ("Hm.", "No tool.")
    assert message.stop_reason == "end_turn" and message._request_id and message.usage.output_tokens > 5
    again = [*SUM, {"role": "assistant", "content": message.content}, *SUM]  # the answer goes back as it came
    assert client.messages.create(messages=again, **asked).role == "assistant"


def tools() -> None:
    [call] = client.messages.create(messages=SUM, tools=[ADD], **asked).content
    assert (call.type, call.name, call.input) == ("tool_use", "add", ARGUMENTS)
    past = {"type": "tool_use", "id": call.id, "name": "add", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "3"}
    turns = [*SUM, {"role": "assistant", "content": [past]}, {"role": "user", "content": [result]}]
    assert client.messages.create(messages=turns, tools=[ADD], **asked).content[0].text == "It is 3."
    forced = client.messages.create(messages=SUM, tools=[ADD], tool_choice={"type": "tool", "name": "add"}, **asked)
    assert forced.stop_reason == "tool_use" and isinstance(forced.content[0].input["a"], int)


def streams() -> None:
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


def counts() -> None:
    counted = client.messages.count_tokens(model=MODEL, messages=SUM, tools=[ADD]).input_tokens
    usage = client.messages.create(messages=SUM, tools=[ADD], **asked).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


class Answer(BaseModel):
    """What has to come."""

    verdict: Literal["yes", "no"]


def schemas() -> None:
    parsed = client.messages.parse(messages=SUM, output_format=Answer, **asked)
    assert parsed.parsed_output.verdict in ("yes", "no")


def errors() -> None:
    expected = [
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "'image'"),
        (anthropic.BadRequestError, {"messages": SUM, "extra_body": {"container": "x"}}, "container"),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "x" * 900}]}, "prompt is too long"),
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


async def asynchronous() -> None:
    async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as other:
        made = await asyncio.gather(*(other.messages.create(messages=SUM, **asked) for _ in range(4)))
        assert {message.content[1].text for message in made} == {"No tool."}
        async with other.messages.stream(messages=SUM, **asked) as stream:
            assert "".join([text async for text in stream.text_stream]) == "No tool."


for check in (whole, tools, streams, counts, schemas, errors):
    check()
asyncio.run(asynchronous())
