"""A suffix: what goes between it and the prompt is asked for as the base was trained to be."""

import pytest

from graft.hub.chat.infill import find_format
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import serving

BASE = "test/llama"
MARKS = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
GAP = {"model": BASE, "prompt": "def f(", "suffix": "):\n  return x", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def base():
    made = tiny_base("llama")
    made.tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, "<file_sep>"]})
    return made


@pytest.fixture(scope="module")
def live(base, tmp_path_factory):
    with serving(base, {"own": write_folder(tmp_path_factory.mktemp("own") / "own", "lora", base, 3)}) as running:
        yield running


@pytest.mark.parametrize("model", [BASE, "own"])
def test_a_suffix_is_the_prompt_that_the_base_was_trained_on(live, model):
    filled = live.post("/v1/completions", GAP | {"model": model})
    spelt = {"prompt": "<fim_prefix>def f(<fim_suffix>):\n  return x<fim_middle>", "suffix": None}
    assert filled.status == 200, filled.data
    expected = live.post("/v1/completions", GAP | spelt | {"model": model})
    assert filled.json["choices"] == expected.json["choices"]
    assert filled.json["usage"]["prompt_tokens"] == expected.json["usage"]["prompt_tokens"]
    assert filled.json["choices"] != live.post("/v1/completions", GAP | {"model": model, "suffix": ""}).json["choices"]


def test_a_list_of_prompts_has_the_suffix_each(live):
    several = live.post("/v1/completions", GAP | {"prompt": ["def f(", "g("]})
    alone = [
        live.post("/v1/completions", GAP | {"prompt": text}).json["choices"][0]["text"] for text in ("def f(", "g(")
    ]
    assert [choice["text"] for choice in several.json["choices"]] == alone


@pytest.mark.parametrize("mark", ["<fim_prefix>", "<file_sep>"])
def test_a_mark_ends_the_middle_and_not_other_texts(live, base, mark):
    always = {"logit_bias": {str(base.tokenizer.convert_tokens_to_ids(mark)): 100}}
    [ended] = live.post("/v1/completions", GAP | always).json["choices"]
    assert (ended["text"], ended["finish_reason"]) == ("", "stop")
    [plain] = live.post("/v1/completions", GAP | always | {"suffix": ""}).json["choices"]
    assert plain["finish_reason"] == "length"
    [ignoring] = live.post("/v1/completions", GAP | always | {"ignore_eos": True}).json["choices"]
    assert ignoring["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("change", "param"),
    [({"prompt": [5, 6]}, "suffix"), ({"prompt": ["a", "b"], "echo": True}, "echo"), ({"suffix": 7}, "suffix")],
)
def test_what_goes_with_no_suffix_is_named(live, change, param):
    reply = live.post("/v1/completions", GAP | change)
    assert reply.status == 400 and reply.error["param"] == param


def test_a_base_without_marks_and_chats_take_none(live):
    chat = {"model": BASE, "messages": [{"role": "user", "content": "x"}], "suffix": "end"}
    assert live.post("/v1/chat/completions", chat).error["param"] == "suffix"
    with serving(tiny_base("llama"), {}) as other:
        reply = other.post("/v1/completions", GAP)
        assert reply.status == 400 and reply.error["param"] == "suffix" and "mark a gap" in reply.error["message"]


def test_the_order_is_the_familys():
    assert find_format(["<|fim_prefix|>", "<|fim_middle|>"]) is None
    assert find_format(["[SUFFIX]", "[PREFIX]", "[INST]"]).join("a", "b") == "[SUFFIX]b[PREFIX]a"
    assert find_format(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]).join("a", "b") == (
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
    )
