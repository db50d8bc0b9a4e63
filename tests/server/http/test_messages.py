"""Anthropic's Messages: a tiny base that has learned its answers by heart thinks, calls a tool, and is answered."""

import json
import urllib.request

import pytest

from tests.server.conftest import write_folder
from tests.server.http.learned import ASK, BASE, TOOLS
from tests.server.live import serving

ADD = {
    "name": "add",
    "description": TOOLS[0]["function"]["description"],
    "input_schema": TOOLS[0]["function"]["parameters"],
}
ANSWERED = [
    {"role": "user", "content": [{"type": "text", "text": "sum", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "add", "input": {"a": 1}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3", "is_error": False}]},
]
WEATHER = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ARGUMENTS = {"a": 1, "é": [2]}
PREFILLED = [*ANSWERED, {"role": "assistant", "content": "It i"}]


@pytest.fixture(scope="module")
def live(learned, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", learned)
    with serving(learned, {"lora": folder}) as running:
        yield running


def body(**more):
    return {"model": BASE, "max_tokens": 140, "messages": ASK, "temperature": 0} | more


def post(live, **more):
    return live.post("/v1/messages", body(**more), {"x-api-key": "none", "anthropic-version": "2023-06-01"})


def test_what_is_thought_is_apart_from_the_answer(live) -> None:
    reply = post(live)
    answer = reply.json
    assert answer["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "No tool."},
    ]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", BASE)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert answer["id"].startswith("msg_") and reply.headers["Request-Id"] == reply.headers["X-Request-Id"]
    chat = live.post("/v1/chat/completions", {"model": BASE, "messages": ASK, "temperature": 0}).json["usage"]
    usage = answer["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat["prompt_tokens"]
    assert usage["output_tokens"] == chat["completion_tokens"] and usage["cache_creation_input_tokens"] == 0


def test_what_is_found_in_the_cache_is_counted_apart(live) -> None:
    asked = {"messages": [{"role": "user", "content": "x" * 80}], "max_tokens": 2}
    first, again = (post(live, **asked).json["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] < again["cache_read_input_tokens"]
    assert again["cache_read_input_tokens"] + again["input_tokens"] == 80 + len("[u][a]")


def test_a_call_and_its_result(live) -> None:
    first = post(live, tools=[ADD]).json
    [call] = first["content"]
    assert (first["stop_reason"], call["type"], call["name"], call["input"]) == (
        "tool_use",
        "tool_use",
        "add",
        ARGUMENTS,
    )
    last = post(live, tools=[ADD | {"type": "custom"}], messages=ANSWERED).json
    assert (last["stop_reason"], last["content"]) == ("end_turn", [{"type": "text", "text": "It is 3."}])
    two = [{"role": "user", "content": "two"}]
    calls = post(live, tools=[ADD], messages=two).json["content"]
    assert [(call["type"], call["input"]) for call in calls] == [("tool_use", ARGUMENTS), ("tool_use", {})]
    one = post(live, tools=[ADD], messages=two, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert len(one.json["content"]) == 1
    assert post(live, tools=[ADD], tool_choice={"type": "none"}).json["content"][-1]["text"] == "No tool."


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_that_has_to_be_is_made(live, choice) -> None:
    answer = post(live, tools=[WEATHER], tool_choice=choice | {"disable_parallel_tool_use": True}).json
    [call] = answer["content"]
    assert call["input"]["city"] in ("Rome", "Oslo") and answer["stop_reason"] == "tool_use"


def test_a_system_prompt_is_the_first_turn(live) -> None:
    said = [{"role": "system", "content": "Be brief."}, *ASK]
    asked = {"model": BASE, "messages": said, "temperature": 0, "max_tokens": 4}
    chat = live.post("/v1/chat/completions", asked).json["usage"]["prompt_tokens"]
    for system in ("Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]):
        usage = post(live, system=system, max_tokens=4).json["usage"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat
    usage = post(live, messages=said, max_tokens=4).json["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == chat


def test_tokens_are_counted_before_they_are_sent(live) -> None:
    for more in ({}, {"tools": [ADD], "messages": ANSWERED}, {"system": "Be brief."}, {"messages": PREFILLED}):
        asked = {key: value for key, value in body(**more).items() if key not in ("max_tokens", "temperature")}
        counted = live.post("/v1/messages/count_tokens", asked)
        usage = post(live, **more).json["usage"]
        assert counted.json == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}


def test_an_answer_goes_on_where_the_last_turn_ends(live) -> None:
    assert post(live, tools=[ADD], messages=PREFILLED).json["content"] == [{"type": "text", "text": "s 3."}]


def test_a_sequence_ends_the_answer_and_is_named(live) -> None:
    asked = {"tools": [ADD], "messages": ANSWERED, "stop_sequences": ["zzz", "is"]}
    answer = post(live, **asked).json
    assert answer["content"] == [{"type": "text", "text": "It "}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "is")
    delta = events_of(live, **asked)[-2]
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "is"}


def test_an_answer_that_is_cut_off(live) -> None:
    assert post(live, max_tokens=5).json["stop_reason"] == "max_tokens"
    call = post(live, max_tokens=50, tools=[ADD]).json
    assert call["stop_reason"] == "max_tokens"
    [told] = call["content"][0]["input"].values()
    assert json.dumps(ARGUMENTS, ensure_ascii=False).startswith(told)


def test_whether_the_model_thinks_is_for_the_template(live) -> None:
    """`enable_thinking` is a variable of templates that leave it open; this one doesn't."""
    reply = post(live, thinking={"type": "enabled", "budget_tokens": 1024}, metadata={"user_id": "u"})
    assert reply.status == 200 and reply.headers["X-Ignored-Fields"] == "metadata, thinking.budget_tokens"


def test_an_adapter_answers_as_in_a_chat(live) -> None:
    chat = {"model": "lora", "messages": ASK, "temperature": 0, "max_tokens": 12}
    expected = live.post("/v1/chat/completions", chat)
    text = expected.json["choices"][0]["message"]["content"]
    reply = post(live, model="lora", max_tokens=12)
    assert reply.json["content"][-1]["text"] == text and text != "No tool."
    for one in (reply, post(live, model="lora", max_tokens=12, stream=True)):
        assert one.headers["X-Adapter-Digest"] == expected.headers["X-Adapter-Digest"]


def events_of(live, **more):
    """Of a stream: its events, whose names are told twice."""
    reply = post(live, stream=True, **more)
    assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in reply.data.decode().removesuffix("\n\n").split("\n\n")]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    return events


BLOCK = ["content_block_start", "content_block_delta", "content_block_stop"]


@pytest.mark.parametrize(
    ("more", "kinds"),
    [
        ({}, ["thinking", "text"]),
        ({"tools": [ADD]}, ["tool_use"]),
        ({"tools": [ADD], "messages": [{"role": "user", "content": "two"}]}, ["tool_use", "tool_use"]),
        ({"tools": [ADD], "messages": ANSWERED}, ["text"]),
    ],
)
def test_a_stream_is_the_same_answer_in_events(live, more, kinds) -> None:
    events, whole = events_of(live, **more), post(live, **more).json
    types = [event["type"] for event in events]
    types = [one for one, before in zip(types, [None, *types], strict=False) if one != before]
    assert types == ["message_start", "ping", *BLOCK * len(kinds), "message_delta", "message_stop"]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["cache_creation_input_tokens"]) == ([], None, 0)
    assert events[-2]["delta"] == {key: whole[key] for key in ("stop_reason", "stop_sequence")}
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    assert [event["content_block"]["type"] for event in events if "content_block" in event] == kinds
    for index, block in enumerate(whole["content"]):
        own = [event for event in events if event.get("index") == index]
        assert own[0]["type"] == "content_block_start" and own[-1]["type"] == "content_block_stop"
        pieces = ["".join(delta.values()) for event in own if (delta := dict(event.get("delta", {}))).pop("type", 0)]
        text = "".join(pieces)
        assert (
            (json.loads(text or "{}") == block["input"])
            if block["type"] == "tool_use"
            else text == block[block["type"]]
        )


def test_a_text_fits_its_schema(live) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    asked = {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": schema}}}
    reply = post(live, **asked)
    [block] = reply.json["content"]
    assert json.loads(block["text"])["a"] in (1, 2)
    assert reply.headers["X-Ignored-Fields"] == "output_config.effort"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "not 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "not 'document'"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result"}]}]}, "not 'tool_result'"),
        ({"messages": ANSWERED[:2]}, "has to follow"),
        ({"messages": [{"role": "user", "content": [{**ANSWERED[2]["content"][0], "content": [{"type": "image"}]}]}]}, "not 'image'"),
        ({"max_tokens": None}, "'max_tokens' is required"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 300}, "prompt is too long"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "prompt is too long"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "not 'web_search_20250305'"),
        ({"tools": [{"name": "add"}]}, "input_schema"),
        ({"tool_choice": {"type": "any"}}, "no tools to call"),
        ({"tools": [ADD], "tool_choice": {"type": "tool"}}, "names no tool"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "sub"}}, "'sub'"),
        ({"stop": ["a"]}, "stop is not supported"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers is not supported"),
        ({"container": "x"}, "container is not supported"),
        ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"temperature": -1}, "temperature"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_name(live, change, words) -> None:
    reply = post(live, **change)
    error = reply.json
    assert reply.status == 400 and error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert words in error["error"]["message"], error
    assert error["request_id"] == reply.headers["Request-Id"]


def test_errors_have_their_own_shape_and_types(live) -> None:
    unknown = post(live, model="nobody")
    assert (unknown.status, unknown.json["error"]["type"]) == (404, "not_found_error")
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        wrong = live.send(urllib.request.Request(live.url + path))
        assert wrong.status == 405 and wrong.json["type"] == "error" and "POST" in wrong.json["error"]["message"]
        assert live.post(path, b"{").json["error"]["type"] == "invalid_request_error"
    assert live.get("/v1/messages/batches").json["error"]["type"] == "not_found_error"


def test_a_stream_that_fails_ends_with_an_event(live, breaking_soon) -> None:
    with breaking_soon(live):
        reply = post(live, stream=True)
    name, data = reply.data.decode().removesuffix("\n\n").split("\n\n")[-1].split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert (name, error["type"], error["error"]["type"]) == ("event: error", "error", "api_error")
    assert b"secret" not in reply.data and post(live).json["stop_reason"] == "end_turn" and live.idle()
