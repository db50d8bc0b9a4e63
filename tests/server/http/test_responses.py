"""OpenAI's Responses: a tiny base that has learned its answers by heart thinks, calls a tool, and is answered."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from tests.server.conftest import write_folder
from tests.server.http.learned import ASK, BASE, TOOLS
from tests.server.live import serving

ADD = {"type": "function", **TOOLS[0]["function"]}
ANSWERED = [
    {"role": "user", "content": [{"type": "input_text", "text": "sum"}]},
    {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a": 1}', "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": "3"},
]
ARGUMENTS = {"a": 1, "é": [2]}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def live(learned, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", learned)
    with serving(learned, {"lora": folder}) as running:
        yield running


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def ask(client, input="sum", **more):
    return client.responses.create(model=BASE, input=input, temperature=0, **more)


def post(live, **more):
    return live.post("/v1/responses", {"model": BASE, "input": "sum", "temperature": 0} | more)


def test_what_is_thought_is_apart_from_the_answer(client, live) -> None:
    answer = ask(client)
    thought, message = answer.output
    assert (answer.status, answer.output_text) == ("completed", "No tool.")
    assert thought.type == "reasoning" and [part.text for part in thought.content] == ["Hm."]
    assert message.role == "assistant" and message.status == "completed" and message.id.startswith("msg_")
    chat = live.post("/v1/chat/completions", {"model": BASE, "messages": ASK, "temperature": 0}).json["usage"]
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == tuple(
        chat[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    assert usage.output_tokens_details.reasoning_tokens == 3 and usage.input_tokens_details.cached_tokens >= 0


@pytest.mark.parametrize(
    "input",
    [
        ASK,
        [{"type": "message", "role": "user", "content": "sum", "id": "x", "status": None}],
        [{"role": "user", "content": [{"type": "input_text", "text": "su"}, {"type": "input_text", "text": "m"}]}],
    ],
)
def test_a_text_is_a_message_however_it_comes(client, input) -> None:
    assert ask(client, input).output_text == "No tool."


def test_a_call_and_its_result(client) -> None:
    first = ask(client, tools=[ADD])
    [call] = first.output
    assert (first.status, first.output_text, call.type, call.name) == ("completed", "", "function_call", "add")
    assert json.loads(call.arguments) == ARGUMENTS and call.call_id.startswith("call_")
    assert first.tools[0].name == "add" and first.tool_choice == "auto" and first.parallel_tool_calls is True
    assert ask(client, ANSWERED, tools=[ADD]).output_text == "It is 3."
    assert [item.type for item in ask(client, "two", tools=[ADD]).output] == ["function_call"] * 2
    assert [item.type for item in ask(client, "two", tools=[ADD], parallel_tool_calls=False).output] == [
        "function_call"
    ]
    assert ask(client, tools=[ADD], tool_choice="none").output_text == "No tool."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_call_that_has_to_be_is_made(client, choice) -> None:
    answer = ask(client, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False)
    [call] = answer.output
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    assert (answer.tool_choice if isinstance(choice, str) else answer.tool_choice.name) in ("required", "get_weather")


def test_an_adapter_answers_as_in_a_chat(live) -> None:
    chat = {"model": "lora", "messages": ASK, "temperature": 0, "max_tokens": 12}
    expected = live.post("/v1/chat/completions", chat)
    text = expected.json["choices"][0]["message"]["content"]
    reply = post(live, model="lora", max_output_tokens=12)
    assert reply.json["output"][-1]["content"][0]["text"] == text and text != "No tool."
    for one in (reply, post(live, model="lora", max_output_tokens=12, stream=True)):
        assert one.headers["X-Adapter-Digest"] == expected.headers["X-Adapter-Digest"]


def events_of(live, **more):
    """Of a stream: its events, whose names are told twice and whose numbers count up."""
    reply = post(live, stream=True, **more)
    assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in reply.data.decode().removesuffix("\n\n").split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def types_of(events) -> list[str]:
    """Without the repetitions of deltas."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [one for one, before in zip(types, [None, *types], strict=False) if one != before]


def item_events(kind: str) -> list[str]:
    own = {"message": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}[kind]
    begin, end = (["content_part.added"], ["content_part.done"]) if kind != "call" else ([], [])
    return ["output_item.added", *begin, f"{own}.delta", f"{own}.done", *end, "output_item.done"]


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({}, ["reasoning", "message"]),
        ({"tools": [ADD]}, ["call"]),
        ({"tools": [ADD], "input": "two"}, ["call", "call"]),
        ({"tools": [ADD], "input": ANSWERED}, ["message"]),
    ],
)
def test_a_stream_is_the_same_answer_in_events(live, more, kinds) -> None:
    events = events_of(live, **more)
    assert types_of(events) == [
        "created", "in_progress", *(one for kind in kinds for one in item_events(kind)), "completed",
    ]  # fmt: skip
    last, whole = events[-1]["response"], post(live, **more).json
    for made, in_pieces in zip(whole["output"], last["output"], strict=True):
        changing = {"id", "call_id"}
        assert {k: v for k, v in made.items() if k not in changing} == {
            k: v for k, v in in_pieces.items() if k not in changing
        }
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == last["output"] and events[0]["response"]["output"] == [] and events[0]["response"]["usage"] is None
    for index, item in enumerate(last["output"]):
        deltas = [event["delta"] for event in events if event.get("output_index") == index and "delta" in event]
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(deltas) == text and deltas
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"] for item in last["output"]}
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_openais_own_helpers_put_it_together(client) -> None:
    with client.responses.stream(model=BASE, input="sum", temperature=0, tools=[ADD | {"strict": True}]) as stream:
        seen = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.done" in seen and final.output[0].parsed_arguments == ARGUMENTS
    with client.responses.stream(model=BASE, input="sum", temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == "No tool."


class Answer(BaseModel):
    """What has to come."""

    verdict: Literal["yes", "no"]


def test_a_text_fits_its_schema(client, live) -> None:
    parsed = client.responses.parse(model=BASE, input="sum", text_format=Answer).output_parsed
    assert parsed.verdict in ("yes", "no")
    reply = post(live, text={"format": {"type": "json_object"}}, max_output_tokens=30)
    assert reply.status == 200 and reply.json["text"]["format"]["type"] == "json_object"
    schema = {"type": "object", "properties": {"a": {"type": "no"}}}
    refused = post(live, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    assert refused.status == 400 and refused.error["param"] == "text.format", refused.data


def test_an_answer_that_is_cut_off_is_incomplete(live) -> None:
    cut = post(live, max_output_tokens=14).json
    assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in cut["output"]][-1] == "incomplete" and cut["usage"]["output_tokens"] == 14
    last = events_of(live, max_output_tokens=14)[-1]
    assert last["type"] == "response.incomplete" and last["response"]["incomplete_details"]
    call = post(live, max_output_tokens=60, tools=[ADD]).json["output"][0]
    assert call["status"] == "incomplete" and json.dumps(ARGUMENTS, ensure_ascii=False).startswith(call["arguments"])


def test_what_an_answer_says_of_itself(live) -> None:
    reply = post(
        live,
        instructions="Be brief.",
        metadata={"a": "b"},
        store=True,
        reasoning={"effort": "low"},
        user="me",
        seed=4,
        text={"verbosity": "low"},
    )
    answer = reply.json
    assert (answer["store"], answer["previous_response_id"], answer["metadata"]) == (False, None, {"a": "b"})
    assert (answer["instructions"], answer["temperature"], answer["object"]) == ("Be brief.", 0.0, "response")
    assert reply.headers["X-Ignored-Fields"] == "reasoning, store, text.verbosity, user"
    assert answer["text"] == {"format": {"type": "text"}}
    plain = live.post(
        "/v1/chat/completions",
        {"model": BASE, "temperature": 0, "messages": [{"role": "system", "content": "Be brief."}, *ASK]},
    )
    assert answer["usage"]["input_tokens"] == plain.json["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": "x" * 300}, "input"),
        ({"max_output_tokens": 300}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [ADD, ADD]}, "tools"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "no"}}], "tool_choice": "required"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "sub"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"temperature": 1e3}, "temperature"),
        ({"model": "nobody"}, "model"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_name(live, change, param) -> None:
    reply = post(live, **change)
    assert 400 <= reply.status < 500 and reply.error["param"] == param, reply.data


def test_a_stream_that_fails_ends_with_an_event(live, breaking_soon) -> None:
    with breaking_soon(live):
        events = events_of(live)
    assert events[-1]["type"] == "response.failed" and events[-1]["response"]["status"] == "failed"
    assert events[-1]["response"]["error"]["code"] == "internal_error" and "secret" not in json.dumps(events)
    assert post(live).json["status"] == "completed" and live.idle()
