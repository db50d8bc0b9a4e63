"""What an adapter's folder says about text is read whole, and what can't be used is left aside and named."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.hub.chat.words import (
    GENERATION,
    MAX_TEMPLATE_BYTES,
    NO_WORDS,
    TEMPLATE,
    TOKENIZER,
    AdapterWords,
    GenerationDefaults,
    read_words,
    words_of,
)


def words(**files) -> AdapterWords:
    """Of files by their constant's name; anything but bytes as JSON."""
    names = {"template": TEMPLATE, "generation": GENERATION, "tokenizer": TOKENIZER}
    data = {
        names[key]: value if isinstance(value, bytes) else json.dumps(value).encode() for key, value in files.items()
    }
    return words_of(lambda name, most: data[name][:most] if name in data else None)


def test_all_that_transformers_writes(tmp_path) -> None:
    (tmp_path / TEMPLATE).write_text("{{ messages }}é", "utf-8")
    generation = {
        "eos_token_id": [1, 7],
        "temperature": 0.7,
        "top_k": 20,
        "max_new_tokens": 9,
        "transformers_version": "5",
    }
    (tmp_path / GENERATION).write_text(json.dumps(generation | {"stop_strings": ["END"], "num_beams": 1}))
    (tmp_path / TOKENIZER).write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}, "chat_template": "old"}))
    found = read_words(tmp_path)
    assert found == AdapterWords(
        template="{{ messages }}é",
        stop_ids=(1, 7),
        stop_tokens=("<|im_end|>",),
        stop_strings=("END",),
        defaults=GenerationDefaults(temperature=0.7, top_k=20, max_new_tokens=9),
    )
    assert read_words(tmp_path / "nowhere") == NO_WORDS


def test_what_the_trainer_writes_is_read_back(tmp_path) -> None:
    own = AdapterWords("{{ x }}", (2,), (), ("a", "b"), GenerationDefaults(temperature=0.5, repetition_penalty=1.1))
    for name, text in own.to_files().items():
        (tmp_path / name).write_text(text, "utf-8")
    assert read_words(tmp_path) == own
    assert NO_WORDS.to_files() == {}


def test_templates_of_older_folders() -> None:
    assert words(tokenizer={"chat_template": "x"}).template == "x"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert words(tokenizer={"chat_template": named, "eos_token": "</s>"}) == AdapterWords("d", (), ("</s>",))
    assert words(generation={"eos_token_id": 5, "do_sample": False, "temperature": 0.6}) == AdapterWords(
        stop_ids=(5,), defaults=GenerationDefaults(temperature=0.0)
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"template": b"x" * (MAX_TEMPLATE_BYTES + 1)}, "chat_template.jinja is larger than"),
        ({"template": b"\xff\xfe"}, "chat_template.jinja is no text"),
        ({"generation": b"{"}, "generation_config.json is no JSON"),
        ({"generation": b"[" * 100_000}, "generation_config.json is no JSON"),
        ({"generation": ["a"]}, "generation_config.json is no JSON object"),
        ({"tokenizer": b"\x00"}, "tokenizer_config.json is no JSON"),
        ({"generation": {"temperature": -1}}, "temperature is no number from 0"),
        ({"generation": {"temperature": float("nan")}}, "temperature"),
        ({"generation": {"top_k": 1.5}}, "top_k"),
        ({"generation": {"top_p": True}}, "top_p"),
        ({"generation": {"max_new_tokens": 1 << 80}}, "max_new_tokens"),
        ({"generation": {"temperature": 10**400}}, "temperature"),
        ({"generation": {"stop_strings": ["x" * 1001]}}, "stop_strings is more than 16 texts"),
        ({"generation": {"no_repeat_ngram_size": 3}}, "no_repeat_ngram_size is not known here"),
        ({"generation": {"bad_words_ids": [[5]]}}, "bad_words_ids"),
        ({"generation": {"suppress_tokens": [7]}}, "suppress_tokens"),
        ({"generation": {"typical_p": 0.5}}, "typical_p"),
        ({"generation": {"num_beams": 4, "early_stopping": True}}, "num_beams"),
        ({"tokenizer": {"eos_token": {"content": "x" * 1001}}}, "eos_token is more than 16 texts"),
    ],
)
def test_what_can_not_be_used_is_left_aside_and_named(files, said) -> None:
    found = words(**files)
    assert len(found.left_aside) == 1 and said in found.left_aside[0]
    assert found == AdapterWords(left_aside=found.left_aside)


def test_what_transformers_writes_of_its_own_is_not_named() -> None:
    """All fields of its generation defaults: they change nothing."""
    from transformers import GenerationConfig

    fields = GenerationConfig().to_dict() | {"max_length": 20, "num_beams": 1, "typical_p": 1.0, "min_length": 0}
    found = words(generation=fields | {"no_repeat_ngram_size": 0, "suppress_tokens": None, "bad_words_ids": []})
    assert not found.left_aside


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "</s>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    ["eos_token_id", "stop_strings", "temperature", "top_k", "do_sample", "eos_token", "chat_template"]
)
objects = st.dictionaries(keys, values, max_size=5)


@settings(max_examples=150, deadline=None)
@given(generation=objects | values, tokenizer=objects | st.binary(max_size=20), template=st.binary(max_size=20))
def test_no_file_is_an_error(generation, tokenizer, template) -> None:
    found = words(generation=generation, tokenizer=tokenizer, template=template)
    hash(found)
    for text in (*found.stop_tokens, *found.stop_strings, found.template or ""):
        text.encode()
    assert all(isinstance(id, int) and id >= 0 for id in found.stop_ids)
