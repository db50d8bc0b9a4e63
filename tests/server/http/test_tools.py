"""Tools over HTTP: a tiny base that has learned one conversation by heart calls a tool, and is answered."""

import json

import openai
import pytest

from graft.hub.base.model import Base
from tests.conftest import tiny_base, tiny_model, tiny_tokenizer
from tests.server.http.learned import ANSWERED, ASK, BASE, CALLS, TEMPLATE, TOOLS, TWO
from tests.server.live import serving


@pytest.fixture(scope="module")
def live(learned):
    with serving(learned, {}) as running:
        yield running


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def ask(client, messages=ASK, **more):
    return client.chat.completions.create(model=BASE, messages=messages, temperature=0, **more)


def test_a_call_and_its_result(client) -> None:
    first = ask(client, tools=TOOLS).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.content is None
    [call] = first.message.tool_calls
    assert call.type == "function" and call.function.name == "add" and call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"a": 1, "é": [2]}
    last = ask(client, ANSWERED, tools=TOOLS).choices[0]  # the history goes through the template
    assert (last.finish_reason, last.message.content, last.message.tool_calls) == ("stop", "It is 3.", None)


def test_the_same_streamed(client) -> None:
    chunks = [chunk.choices[0] for chunk in ask(client, tools=TOOLS, stream=True)]
    assert chunks[-1].finish_reason == "tool_calls" and chunks[0].delta.role == "assistant"
    assert not any(chunk.delta.content for chunk in chunks)  # nothing of the markup
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert len(deltas) > 5 and {delta.index for delta in deltas} == {0}
    assert deltas[0].id and deltas[0].function.name == "add" and deltas[0].type == "function"
    assert not any(delta.id or delta.function.name for delta in deltas[1:])
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"a": 1, "é": [2]}


def test_openais_own_helpers_put_it_together(client) -> None:
    with client.chat.completions.stream(model=BASE, messages=ASK, temperature=0, tools=TOOLS) as stream:
        seen = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in seen and "tool_calls.function.arguments.done" in seen
    assert json.loads(message.tool_calls[0].function.arguments) == {"a": 1, "é": [2]}


def test_several_calls_and_no_more_than_one(client) -> None:
    two = [{"role": "user", "content": "two"}]
    calls = ask(client, two, tools=TOOLS).choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["add", "add"] and calls[0].id != calls[1].id
    answer = ask(client, two, tools=TOOLS, parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1 and answer.choices[0].finish_reason == "tool_calls"
    assert answer.usage.completion_tokens < len(TWO.encode())  # it ended there


HALF = "\ud800"


def past(arguments):
    return {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]}


def test_half_a_character_in_tools_and_arguments_is_refused() -> None:
    """They hold whatever JSON can say, and templates write it down."""
    base = tiny_base("llama")
    base.tokenizer.chat_template = (
        "{% for t in tools or [] %}<tool_call>{{ t | tojson }}{% endfor %}{{ x }}"
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}"
        "{% endfor %}{% endfor %}"
    )
    turn, schema = [{"role": "user", "content": "a"}], {"type": "object", "description": HALF}
    cases = [
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}),
        ("chat/completions", {"chat_template_kwargs": {"x": HALF}}),
        ("chat/completions", past({"a": HALF})),
        ("chat/completions", past('{"a": "\\ud800"}')),
        ("responses", {"input": "a", "tools": [{"type": "function", "name": "f", "parameters": schema}]}),
        ("messages", {"max_tokens": 1, "tools": [{"name": "f", "input_schema": schema}]}),
        ("messages/count_tokens", {"tools": [{"name": "f", "input_schema": schema}]}),
    ]
    with serving(base, {}) as live:
        for path, more in cases:
            own = {} if path == "responses" else {"messages": turn}
            reply = live.post(f"/v1/{path}", {"model": BASE, **own, **more})
            assert reply.status == 400 and "surrogate" in reply.json["error"]["message"], (path, reply.data)
        assert live.idle()


def test_a_call_that_is_cut_off_is_a_call_as_far_as_it_came(client) -> None:
    cut = ask(client, tools=TOOLS, max_tokens=60).choices[0]
    assert cut.finish_reason == "length"
    assert '{"a": 1, "é": [2]}'.startswith(cut.message.tool_calls[0].function.arguments)


def test_without_tools_there_is_reasoning_apart_from_the_answer(live, client) -> None:
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": [], "tool_choice": "auto"}):
        message = ask(client, **more).choices[0].message
        assert (message.content, message.reasoning_content, message.tool_calls) == ("No tool.", "Hm.", None)
    body = {"model": BASE, "messages": ASK, "temperature": 0, "stream": True}
    *chunks, done = live.post("/v1/chat/completions", body).events
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert done == "[DONE]" and "".join(delta.get("content", "") for delta in deltas) == "No tool."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."


def test_log_probabilities_are_those_of_all_text_that_was_generated(client) -> None:
    whole = ask(client, tools=TOOLS, logprobs=True)
    report = whole.choices[0].logprobs.content
    assert len(report) == whole.usage.completion_tokens - 1  # without the token that ends it
    assert b"".join(bytes(entry.bytes) for entry in report).decode() == CALLS
    streamed = ask(client, tools=TOOLS, logprobs=True, stream=True)
    entries = [entry for chunk in streamed if (got := chunk.choices[0].logprobs) for entry in got.content]
    assert [entry.token for entry in entries] == [entry.token for entry in report]


def test_an_answer_goes_on_where_the_last_message_ends(client) -> None:
    begun = [*ANSWERED, {"role": "assistant", "content": "It i"}]
    whole = ask(client, ANSWERED, tools=TOOLS).choices[0].message.content
    on = ask(client, begun, tools=TOOLS, extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert "It i" + on.choices[0].message.content == whole
    with pytest.raises(openai.BadRequestError, match="add_generation_prompt"):
        ask(client, begun, extra_body={"continue_final_message": True, "add_generation_prompt": True})


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "sub"}}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "tool_choice.type"),
        ({"tool_choice": "any", "tools": TOOLS}, "tool_choice"),
        ({"tools": TOOLS * 2}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_what_can_not_be_is_refused_by_name(live, change, param) -> None:
    reply = live.post("/v1/chat/completions", {"model": BASE, "messages": ASK} | change)
    assert reply.status == 400 and reply.error["param"] == param, reply.data


# Calls that must be

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def is_weather(arguments: str) -> bool:
    found = json.loads(arguments)
    return found.keys() == {"city", "days"} and found["city"] in ("Rome", "Oslo") and 1 <= found["days"] <= 9


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_call_that_has_to_be_is_made_and_fits_its_schema(client, choice, temperature) -> None:
    asked = {"model": BASE, "messages": ASK, "tools": [WEATHER], "tool_choice": choice, "temperature": temperature}
    answer = client.chat.completions.create(**asked, n=4, parallel_tool_calls=False, max_tokens=200)
    for one in answer.choices:
        assert one.finish_reason == "tool_calls" and one.message.content is None
        [call] = one.message.tool_calls
        assert call.function.name == "get_weather" and is_weather(call.function.arguments)
    chunks = [
        chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True, parallel_tool_calls=False)
    ]
    pieces = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)
    assert is_weather("".join(piece.function.arguments for piece in pieces))


def test_marks_that_are_tokens_of_their_own_are_those_tokens() -> None:
    """As in Qwen's vocabulary: the grammar library knows <tool_call> as a token, not as the letters of its name."""
    tokenizer, model = tiny_tokenizer(), tiny_model("llama", seed=1)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = TEMPLATE.replace("<think>", "(").replace("</think>", ")")
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    with serving(Base(model, tokenizer, id=BASE), {}) as live:
        body = {
            "model": BASE,
            "messages": ASK,
            "tools": [strict],
            "parallel_tool_calls": False,
            "logprobs": True,
            "seed": 3,
        }
        for choice in ("required", "auto"):
            reply = live.post("/v1/chat/completions", body | {"tool_choice": choice, "max_tokens": 180})
            assert reply.status == 200, reply.data
            [answer] = reply.json["choices"]
            calls = answer["message"].get("tool_calls", [])
            assert (
                all(is_weather(call["function"]["arguments"]) for call in calls) or answer["finish_reason"] == "length"
            )
            if choice == "required":
                assert (
                    answer["finish_reason"] == "tool_calls"
                    and answer["logprobs"]["content"][0]["token"] == "<tool_call>"
                )


def test_one_of_several_has_to_be(client) -> None:
    answer = ask(
        client, tools=[*TOOLS, WEATHER], tool_choice="required", parallel_tool_calls=False, n=4, seed=1, top_p=0.9
    )
    assert {one.message.tool_calls[0].function.name for one in answer.choices} <= {"add", "get_weather"}


def test_strict_arguments_fit_and_the_text_stays_free(client) -> None:
    strict = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]
    thoughtless = {
        "chat_template": TEMPLATE.replace("<think>", "").replace("</think>", "")
    }  # thought is held to nothing

    def ask(client, messages=ASK, **more):
        return client.chat.completions.create(
            model=BASE, messages=messages, temperature=0, extra_body=thoughtless, **more
        )

    learned = ask(client, tools=strict).choices[0].message  # the call as it was learned fits
    assert json.loads(learned.tool_calls[0].function.arguments) == {"a": 1, "é": [2]}
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "add", "strict": True}}
    held = ask(client, tools=[other]).choices[0].message  # what was learned doesn't fit
    assert is_weather(held.tool_calls[0].function.arguments)
    assert ask(client, ANSWERED, tools=strict).choices[0].message.content == "It is 3."


def test_strict_arguments_fit_behind_thought_and_the_rest_is_named(live) -> None:
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "add", "strict": True}}
    body = {"model": BASE, "messages": ASK, "temperature": 0, "tools": [other], "max_tokens": 200}
    held = live.post("/v1/chat/completions", body)  # what was learned doesn't fit, and this model may think
    [call] = held.json["choices"][0]["message"]["tool_calls"]
    assert is_weather(call["function"]["arguments"]) and "X-Ignored-Fields" not in held.headers
    mistral = {"chat_template": "{{ messages[0].content }}{{ tools[0].function.name }}[TOOL_CALLS]", "max_tokens": 3}
    free = live.post("/v1/chat/completions", body | mistral)
    assert free.status == 200 and free.headers["X-Ignored-Fields"] == "tools.strict"
    forced = live.post("/v1/chat/completions", body | mistral | {"tool_choice": "required"})
    assert forced.status == 200 and "X-Ignored-Fields" not in forced.headers


def test_an_answer_that_is_no_call_fits_its_format(client) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "yes"}}}
    for _ in range(3):
        one = client.chat.completions.create(
            model=BASE, messages=ASK, tools=[WEATHER], response_format=format, temperature=2, max_tokens=200,
            parallel_tool_calls=False,
        ).choices[0]  # fmt: skip
        calls = one.message.tool_calls
        assert is_weather(calls[0].function.arguments) if calls else one.message.content == '"yes"'
    only = ask(client, tools=[WEATHER], tool_choice="none", response_format=format).choices[0].message
    assert only.content == '"yes"' and only.tool_calls is None


def test_a_schema_that_can_not_be_held_is_told(live) -> None:
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "no"}}}},
    }
    body = {"model": BASE, "messages": ASK, "tools": [tool], "tool_choice": "required"}
    reply = live.post("/v1/chat/completions", body)
    assert reply.status == 400 and reply.error["param"] == "tools", reply.data


@pytest.mark.parametrize("depth", [40, 200, 300, 500, 900, 960, 3000])
def test_what_can_be_read_can_be_written_again(live, depth) -> None:
    """By a template, or in an answer that shows what was asked: so what is nested too deeply is refused at once."""
    deep = '{"a":' * depth + "1" + "}" * depth
    start, say = f'{{"model": "{BASE}", "max_tokens": 1, "messages"', json.dumps(ASK[0])
    call = f'{{"name": "f", "arguments": {deep}}}'
    bodies = {
        "/v1/chat/completions": (
            f'{start}: [{say}], "tools": [{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}]}}',
            f'{start}: [{say}, {{"role": "assistant", "tool_calls": [{{"function": {call}}}]}}]}}',
        ),
        "/v1/responses": (
            f'{{"model": "{BASE}", "max_output_tokens": 1, "input": "a", "tools": [{{"type": "function", "name": "f", '
            f'"parameters": {deep}}}]}}',
        ),
        "/v1/messages": (f'{start}: [{say}], "tools": [{{"name": "f", "input_schema": {deep}}}]}}',),
    }
    for path, body in ((path, body) for path, tried in bodies.items() for body in tried):
        reply = live.post(path, body.encode())
        assert reply.status == 400 or (reply.status == 200 and depth < 256), (path, reply.data)
        assert reply.status == 200 or (b"256 deep" if depth > 256 else b"maximum context length") in reply.data
    text = {"function": {"name": "f", "arguments": deep}}  # of a call whose arguments come as text
    turns = [ASK[0], {"role": "assistant", "tool_calls": [text]}]
    reply = live.post("/v1/chat/completions", {"model": BASE, "max_tokens": 1, "messages": turns})
    assert reply.status == 200 or reply.error["code"] == "context_length_exceeded", reply.data
