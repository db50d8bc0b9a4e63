"""K6, K7, K9, K10: what clients of OpenAI's API send, from where, and what they act upon in an error.

Reports: https://github.com/vllm-project/vllm/issues/10463, https://github.com/livekit/agents/issues/1276 and
https://github.com/anomalyco/opencode/issues/43089 (fields of a client's own), https://github.com/huggingface/transformers/issues/39932
(browsers), https://github.com/BerriAI/litellm/issues/10793 and https://github.com/OpenHands/OpenHands/issues/8149 (the code of
a prompt that is too long), https://github.com/ilkersigirci/langgraph-openai-serve/issues/9 (paths),
https://github.com/vllm-project/vllm/issues/6862 (a server with a key). What is right: unknown fields are ignored as
OpenAI-compatible servers do; what would change the answer and isn't honoured is refused by name.
"""

from itertools import chain

import pytest
from click.testing import CliRunner

from graft.hub.cli.main import main
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.app import create_app
from graft.server.http.request_fields import IGNORED, NEUTRAL, OTHER_NAMES, guess_field
from graft.server.http.schemas import ChatBody, CompletionBody
from graft.server.keys.access import Access
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from tests.conftest import tiny_base
from tests.server.live import CHAT_TEMPLATE, OPTIONS

THINKING = CHAT_TEMPLATE + "{% if enable_thinking %}[think]{% endif %}"
COMPLETION = {"model": "test/llama", "prompt": "abc", "max_tokens": 2, "temperature": 0}
CHAT = {"model": "test/llama", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
BODIES = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT}
both = pytest.mark.parametrize("path", BODIES)


@pytest.fixture(scope="module")
def engine():
    base = tiny_base("llama")
    base.tokenizer.chat_template = THINKING
    with Engine(base, {}, None, OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def client(engine):
    return create_app(EngineClient(engine)).test_client()


def answered(client, path, **more):
    return client.post(path, json=BODIES[path] | more)


def text_of(reply) -> str:
    choice = reply.json["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


UNKNOWN = [
    {"reasoning_effort": "low", "verbosity": "low"}, {"chat_id": "x", "id": "y", "session_id": 3},
    {"models": ["a/b", "c/d"], "route": "fallback", "provider": {"order": ["x"]}, "transforms": []},  # a router's
    {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"prediction": {"type": "content", "content": "x"}},
    {"keep_alive": "5m", "num_ctx": 4096, "cache_prompt": True, "slot_id": -1}, {"extra_body": {"top_k": 3}},
    {"return_token_ids": False, "kv_transfer_params": {}}, {"request_id": "r"},
    {"include_reasoning": False, "stream_reasoning": True, "x": None, "": 1, "ünïcode\nfield": 2},
]  # fmt: skip


@both
@pytest.mark.parametrize("fields", UNKNOWN, ids=lambda fields: next(iter(fields)))
def test_unknown_fields_are_left_aside_and_named(client, path, fields) -> None:
    plain, reply = answered(client, path), answered(client, path, **fields)
    assert reply.status_code == 200, reply.text
    assert text_of(reply) == text_of(plain) and "X-Ignored-Fields" not in plain.headers
    named = reply.headers["X-Ignored-Fields"].split(", ")
    assert {field for field, value in fields.items() if value is not None and field.isascii()} <= set(named)


@both
@pytest.mark.parametrize("field", sorted(IGNORED))
def test_openais_fields_of_no_effect_are_named(client, path, field) -> None:
    reply = answered(client, path, **{field: "x"})
    assert reply.status_code == 200 and reply.headers["X-Ignored-Fields"] == field
    assert "X-Ignored-Fields" not in answered(client, path, **{field: None}).headers


def test_unknown_fields_of_messages_parts_and_stream_options(client) -> None:
    messages = [
        {"role": "user", "content": "Hi", "id": 17, "opts": {"visible": False}, "createdAt": "2026-01-01"},
        {
            "role": "assistant",
            "content": "Yes",
            "reasoning_content": "t",
            "tool_calls": [],
            "refusal": None,
            "audio": None,
        },
        {"role": "user", "content": [{"type": "text", "text": "Again", "cache_control": {"type": "ephemeral"}}]},
    ]
    plain = [
        {"role": turn["role"], "content": text} for turn, text in zip(messages, ("Hi", "Yes", "Again"), strict=True)
    ]
    replies = [answered(client, "/v1/chat/completions", messages=turns) for turns in (messages, plain)]
    assert [reply.status_code for reply in replies] == [200, 200] and len({text_of(reply) for reply in replies}) == 1
    assert len({reply.json["usage"]["prompt_tokens"] for reply in replies}) == 1
    options = {"include_usage": True, "continuous_usage_stats": False, "mine": 1}
    stream = answered(client, "/v1/completions", stream=True, stream_options=options)
    assert stream.status_code == 200 and b'"total_tokens":5' in stream.data
    assert stream.headers["X-Ignored-Fields"] == "stream_options.mine"


CHANGING = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "required"), ("functions", [{"name": "f"}]),
    ("suffix", "end"), ("skip_special_tokens", False), ("mirostat", 2), ("xtc_probability", 0.5),
    ("grammar", "root ::= x"), ("ebnf", "root ::= x"), ("regex", "a+"), ("use_beam_search", True), ("length_penalty", 0.5),
    ("continue_final_message", True), ("add_generation_prompt", False), ("chat_template", "{{ x }}"),
    ("truncate_prompt_tokens", 5), ("documents", [{"text": "a"}]), ("modalities", ["audio"]),
    ("repeat_penalty", 1.5), ("rep_pen", 1.5), ("encoder_repetition_penalty", 2), ("repeat_last_n", 5), ("typ_p", 0.5),
    ("repetition_detection", {"max_pattern_size": 3}), ("penalty_alpha", 0.6), ("diversity_penalty", 1), ("do_sample", False),
    ("guidance_scale", 2), ("negative_prompt", "x"), ("stop_regex", "a+"), ("no_stop_trim", True), ("eos_token_id", 70),
    ("suppress_tokens", [5]), ("bad_words_ids", [[5]]), ("custom_logit_processor", "x"),
    ("adapter_id", "lora"), ("lora_path", "lora"), ("lora_name", "lora"), ("lora", [{"id": 0, "scale": 1}]), ("adapters", "lora"),
]  # fmt: skip


SCHEMAS = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody}
REFUSED = [(path, *case) for path, body in SCHEMAS.items() for case in CHANGING if case[0] not in body.model_fields]


@pytest.mark.parametrize(("path", "field", "value"), REFUSED, ids=[f"{field}-{path}" for path, field, _ in REFUSED])
def test_what_would_change_the_answer_is_refused_by_name(client, path, field, value) -> None:
    error = answered(client, path, **{field: value})
    assert error.status_code == 400
    assert error.json["error"]["param"] == field and field in error.json["error"]["message"]
    assert answered(client, path, **{field: None}).status_code == 200
    for neutral in NEUTRAL[field]:
        assert answered(client, path, **{field: neutral}).status_code == 200


@both
@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("repeat_penalty", 1.5, "repetition_penalty"),
        ("rep_pen", 1.5, "repetition_penalty"),
        ("do_sample", False, "temperature"),
        ("eos_token_id", 70, "stop_token_ids"),
        ("no_stop_trim", True, "include_stop_str_in_output"),
        ("suppress_tokens", [5], "logit_bias"),
        ("adapter_id", "lora", "model"),
        ("lora_path", "lora", "model"),
        ("sampling_seed", 3, "seed"),
    ],
)
def test_what_others_call_a_field_of_ours_is_told(client, path, field, value, name) -> None:
    error = answered(client, path, **{field: value}).json["error"]
    assert error["param"] == field and error["message"].rstrip("?.").endswith((f" {name}", f" {name!r}"))


@pytest.mark.parametrize(
    ("turn", "field"),
    [
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, "function_call"),
        ({"role": "assistant", "content": "The", "prefix": True}, "prefix"),
    ],
)
def test_what_would_change_the_prompt_is_refused_by_name(client, turn, field) -> None:
    error = answered(client, "/v1/chat/completions", messages=[*CHAT["messages"], turn]).json["error"]
    assert field in error["message"] and error["param"] == "messages[1]"


def test_template_arguments_reach_the_template_and_what_is_none_is_refused(client) -> None:
    path, plain = "/v1/chat/completions", answered(client, "/v1/chat/completions")
    for arguments in ({}, {"reasoning": "none"}, {"enable_thinking": False}):
        reply = answered(client, path, chat_template_kwargs=arguments)
        assert reply.status_code == 200 and text_of(reply) == text_of(plain)
    thinking = answered(client, path, chat_template_kwargs={"enable_thinking": True})
    assert thinking.json["usage"]["prompt_tokens"] == plain.json["usage"]["prompt_tokens"] + len("[think]")
    for arguments in ({"add_generation_prompt": False}, {"messages": []}, {"tokenize": True}):
        error = answered(client, path, chat_template_kwargs=arguments).json["error"]
        assert error["param"] == "chat_template_kwargs" and next(iter(arguments)) in error["message"]


def test_tool_messages_and_earlier_calls_are_taken(client) -> None:
    """Cases 42, 43 and 45; this base's template has no place for tools, which is told."""
    path, call = "/v1/chat/completions", {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [*CHAT["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "4", "tool_call_id": "c1"}, {"role": "user", "content": "So?"}]
    assert answered(client, path, messages=turns).status_code == 200
    assert answered(client, path, tools=[], tool_choice="auto", parallel_tool_calls=True).status_code == 200
    tools = [{"type": "function", "function": {"name": "f"}}]
    error = answered(client, path, tools=tools).json["error"]
    assert error["param"] == "tools" and "no place for tools" in error["message"]
    assert answered(client, path, tools=tools, tool_choice="none").status_code == 200
    error = answered(client, path, tool_choice="required").json["error"]
    assert error["param"] == "tool_choice" and "no tools to call" in error["message"]


SLIPS = {
    "temprature": "temperature", "tempereature": "temperature", "temperatur": "temperature", "temperatrue": "temperature",
    "maxTokens": "max_tokens", "max-tokens": "max_tokens", "topP": "top_p", "Stream": "stream", "stop_token_id": "stop_token_ids",
    "max_new_tokens": "max_tokens", "stop_sequences": "stop", "n_predict": "max_tokens", "streams": "stream",
    "max_completion_tokens": "max_tokens",
}  # fmt: skip


@pytest.mark.parametrize(("slip", "name"), SLIPS.items())
def test_a_slip_of_the_finger_is_named(client, slip, name) -> None:
    body = {key: value for key, value in COMPLETION.items() if key != name} | {slip: 1}
    error = client.post("/v1/completions", json=body)
    assert error.status_code == 400 and error.json["error"]["param"] == slip
    assert f"did you mean {name!r}?" in error.json["error"]["message"]
    if name in COMPLETION:  # beside the right one it is somebody's own field
        assert client.post("/v1/completions", json=COMPLETION | {slip: 1}).status_code == 200


def test_fields_that_others_really_send_are_no_slips() -> None:
    """Whatever is known of other servers' and routers' fields, none of it is one letter from ours."""
    real = (
        {field for fields in UNKNOWN for field in fields}
        | IGNORED
        | NEUTRAL.keys()
        | {"top_n", "tool", "mode", "prompt_id"}
    )
    renamed = set(chain.from_iterable(OTHER_NAMES.values()))
    for body in (CompletionBody, ChatBody):
        known = body.model_fields.keys() - {"model", "messages", "prompt"}
        guessed = [(field, guess_field(field, known)) for field in real - body.model_fields.keys() - renamed]
        assert [(field, guess) for field, guess in guessed if guess] == []


# Errors that clients act upon


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/v1/completions", {"prompt": "x" * 300}),
        ("/v1/completions", {"prompt": "abc", "max_tokens": 300}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a b " * 100}]}),
        ("/v1/chat/completions", {"max_tokens": 10_000}),
    ],
)
def test_a_prompt_that_is_too_long_has_the_code_that_clients_shorten_on(client, path, change) -> None:
    reply = answered(client, path, **change)
    assert reply.status_code == 400 and reply.json["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 256 tokens" in reply.json["error"]["message"] and reply.json["error"]["param"]


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 300}], "max_tokens": None}, None),
        ("/v1/completions", {"prompt": "x" * 250, "max_tokens": None}, "and max_tokens=16 (the default) is beside it"),
        ("/v1/completions", {"prompt": "x" * 250, "max_tokens": 9}, "and max_tokens=9 is beside it"),
    ],
)
def test_what_is_beside_a_long_prompt_is_told_as_it_was_given(client, path, change, words) -> None:
    message = answered(client, path, **change).json["error"]["message"]
    assert words in message if words else "max_tokens" not in message


@pytest.mark.parametrize("path", ["/v1/assistants", "/v1/threads", "/api/chat"])
def test_paths_of_other_apis_name_the_one_that_is_here(client, path) -> None:
    reply = client.post(path, json={"model": "x", "input": "Hi"})
    assert reply.status_code == 404 and "/v1/chat/completions" in reply.json["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/completions", "/models", "/responses", "/messages", "/v1/v1/chat/completions"]
)
def test_a_base_url_without_v1_or_with_two_is_told(client, path) -> None:
    assert "http://HOST:PORT/v1" in client.get(path).json["error"]["message"]


# A key


def test_a_server_that_asks_for_a_key(engine, tmp_path) -> None:
    """Case 57. Clients send a key in `Authorization`, a placeholder where they were given none."""
    assert "--keys" in CliRunner().invoke(main, ["serve", "--help"]).output
    file = tmp_path / "keys.toml"
    made = CliRunner().invoke(main, ["keys", "new", "mine", "--file", str(file)])
    access = Access(Keyring(KeyFile(file, has_hub=False), None))
    client = create_app(EngineClient(engine), open_access=lambda: access).test_client()
    right = {"Authorization": f"Bearer {made.stdout.strip()}"}
    for key in ({}, {"Authorization": "Bearer EMPTY"}, {"Authorization": "Bearer sk-none"}, {"api-key": "x"}):
        for reply in (
            client.get("/v1/models", headers=key),
            client.post("/v1/completions", json=COMPLETION, headers=key),
        ):
            assert reply.status_code == 401 and reply.json["error"]["code"] == "invalid_api_key"
    assert client.get("/v1/models", headers=right).json["data"][0]["id"] == "test/llama"
    for path, body in BODIES.items():
        assert client.post(path, json=body, headers=right).status_code == 200
    assert client.get("/health").status_code == 200  # whoever watches over it has none


# Browsers

PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
    "Access-Control-Request-Private-Network": "true",
}


def test_pages_of_named_origins_may_call(engine) -> None:
    client = create_app(EngineClient(engine), cors_origins=("http://localhost:3000",)).test_client()
    origin = {"Origin": "http://localhost:3000"}
    reply = client.options("/v1/chat/completions", headers=origin | PREFLIGHT)
    assert reply.status_code == 204 and reply.headers["Access-Control-Allow-Origin"] == origin["Origin"]
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]
    assert reply.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
    assert reply.headers["Access-Control-Allow-Private-Network"] == "true" and "Origin" in reply.headers["Vary"]
    for reply in (client.get("/v1/models", headers=origin), client.get("/nowhere", headers=origin)):
        assert reply.headers["Access-Control-Allow-Origin"] == origin["Origin"]
        assert "X-Adapter-Digest" in reply.headers["Access-Control-Expose-Headers"]
    stream = client.post("/v1/completions", json=COMPLETION | {"stream": True}, headers=origin)
    assert stream.headers["Access-Control-Allow-Origin"] == origin["Origin"] and stream.data.endswith(b"[DONE]\n\n")
    for other in ("http://localhost:3001", "https://localhost:3000", "null", "http://localhost:3000.evil.example"):
        headers = {"Origin": other}
        assert "Access-Control-Allow-Origin" not in client.get("/v1/models", headers=headers).headers
        assert client.options("/v1/models", headers=headers | PREFLIGHT).status_code != 204


def test_any_origin_and_none(engine, client) -> None:
    origin = {"Origin": "https://a.example"}
    anyone = create_app(EngineClient(engine), cors_origins=("*",)).test_client()
    assert anyone.get("/v1/models", headers=origin).headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Origin" not in client.get("/v1/models", headers=origin).headers
    assert "Access-Control-Allow-Origin" not in anyone.get("/v1/models").headers
