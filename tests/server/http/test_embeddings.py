"""/v1/embeddings over HTTP, against one pass over each text alone."""

import base64
import threading

import numpy as np
import pytest

from graft.server.http.dialects.embedding_bodies import MAX_INPUTS
from tests.conftest import tiny_base
from tests.server.conftest import random_tensors, write_folder
from tests.server.live import serving
from tests.server.runners.test_hidden import hidden_states

KINDS = ("lora", "houlsby", "prompt", "prefix")
TEXTS = ["Who keeps bees?", "x", "A longer text, of several words and 64 tokens at the very least, here."]
WIDTH = 32


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama")


@pytest.fixture(scope="module")
def live(base, tmp_path_factory):
    top = tmp_path_factory.mktemp("adapters")
    adapters = {kind: write_folder(top / kind, kind, base, seed) for seed, kind in enumerate(KINDS)}
    with serving(base, adapters) as running:
        yield running


def rows(base, name, text):
    """[T, H] of a text."""
    forms = ()
    if name in KINDS:
        method, config, tensors = random_tensors(name, base, KINDS.index(name))
        forms = method.fold(config, tensors, base)
    return hidden_states(base, forms, base.tokenizer.encode(text)).double().numpy()


def unit(vector):
    return vector / np.sqrt((vector**2).sum())


def vectors(reply):
    assert reply.status == 200, reply.data
    assert [one["index"] for one in reply.json["data"]] == list(range(len(reply.json["data"])))
    return [np.array(one["embedding"]) for one in reply.json["data"]]


@pytest.mark.parametrize("name", ["test/llama", *KINDS])
def test_every_kind_by_both_poolings(live, base, name):
    for pooling, pool in (("mean", lambda states: states.mean(0)), ("last", lambda states: states[-1])):
        reply = live.post("/v1/embeddings", {"model": name, "input": TEXTS, "pooling": pooling})
        for text, got in zip(TEXTS, vectors(reply), strict=True):
            np.testing.assert_allclose(got, unit(pool(rows(base, name, text))), atol=1e-5)
        count = sum(len(base.tokenizer.encode(text)) for text in TEXTS)
        assert reply.json["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert reply.json["model"] == name and reply.json["object"] == "list"
        assert ("X-Adapter-Digest" in reply.headers) == (name in KINDS)
    assert live.idle()


def test_what_is_said_is_the_mean_of_unit_length(live, base):
    (got,) = vectors(live.post("/v1/embeddings", {"model": "lora", "input": TEXTS[0]}))
    np.testing.assert_allclose(got, unit(rows(base, "lora", TEXTS[0]).mean(0)), atol=1e-5)
    (raw,) = vectors(live.post("/v1/embeddings", {"model": "lora", "input": TEXTS[0], "normalize": False}))
    np.testing.assert_allclose(raw, rows(base, "lora", TEXTS[0]).mean(0), atol=1e-4)


def test_all_ways_to_give_texts(live, base):
    ids = [base.tokenizer.encode(text) for text in TEXTS[:2]]
    one, two = vectors(live.post("/v1/embeddings", {"model": "lora", "input": TEXTS[:2]}))
    for given, expected in ((TEXTS[0], [one]), (ids[0], [one]), (ids, [one, two]), ([TEXTS[1]], [two])):
        for got, want in zip(
            vectors(live.post("/v1/embeddings", {"model": "lora", "input": given})), expected, strict=True
        ):
            np.testing.assert_allclose(got, want, atol=1e-6)


def test_base64_holds_the_same_numbers(live):
    asked = {"model": "prefix", "input": TEXTS}
    plain = vectors(live.post("/v1/embeddings", asked))
    packed = live.post("/v1/embeddings", asked | {"encoding_format": "base64"}).json["data"]
    for got, want in zip(packed, plain, strict=True):
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(got["embedding"]), "<f4"), want, atol=1e-6)


def test_dimensions_are_cut_before_the_length_is_made_one(live, base):
    asked = {"model": "lora", "input": TEXTS[0]}
    for kept in (1, 7, WIDTH):
        (got,) = vectors(live.post("/v1/embeddings", asked | {"dimensions": kept}))
        np.testing.assert_allclose(got, unit(rows(base, "lora", TEXTS[0]).mean(0)[:kept]), atol=1e-5)
    refused = live.post("/v1/embeddings", asked | {"dimensions": WIDTH + 1})
    assert refused.status == 400 and refused.error["param"] == "dimensions" and str(WIDTH) in refused.error["message"]


def test_beside_a_stream_both_are_what_they_are_alone(live, base):
    asked = {"model": "houlsby", "prompt": TEXTS[0], "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    alone = live.post("/v1/completions", asked).json["choices"][0]["text"]
    expected = [unit(rows(base, "prompt", text).mean(0)) for text in TEXTS]  # before: a base is one thread's at a time
    beside = []
    thread = threading.Thread(target=lambda: beside.append(live.post("/v1/completions", asked)))
    thread.start()
    while thread.is_alive():
        np.testing.assert_allclose(
            vectors(live.post("/v1/embeddings", {"model": "prompt", "input": TEXTS})), expected, atol=1e-5
        )
    assert beside[0].json["choices"][0]["text"] == alone


WRONG = {
    "nothing": ({}, "input", "required"),
    "no texts": ({"input": []}, "input", "not empty"),
    "an empty text": ({"input": ["a", ""]}, "input", "input[1] is empty"),
    "no ids": ({"input": [[5], []]}, "input", "none of them empty"),
    "a mixture": ({"input": ["a", [5]]}, "input", "not a mixture"),
    "an id that is none": ({"input": [5, 300]}, "input", "vocabulary of 300"),
    "too many": ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", f"may have {MAX_INPUTS}"),
    "too long a text": ({"input": ["a", "b" * 400]}, "input", "maximum context length is 256 tokens; input[1] has 40"),
    "another format": ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
    "another pooling": ({"input": "a", "pooling": "cls"}, "pooling", "'mean' or 'last'"),
    "no dimensions": ({"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
    "another server's field": ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "not supported"),
    "a slip": ({"input": "a", "normalise": False}, "normalise", "did you mean 'normalize'"),
    "no model": ({"input": "a", "model": "absent"}, "model", "absent"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_can_t_be_embedded_is_refused_by_name(live, wrong):
    body, param, words = WRONG[wrong]
    reply = live.post("/v1/embeddings", {"model": "lora", **body})
    assert reply.status == (404 if param == "model" else 400)
    assert reply.error["param"] == param and words in reply.error["message"]


def test_codes_and_the_fields_left_aside(live):
    long = live.post("/v1/embeddings", {"model": "prompt", "input": "b" * 253})  # five virtual tokens beside
    assert long.status == 400 and long.error["code"] == "context_length_exceeded" and long.error["param"] == "input"
    absent = live.post("/v1/embeddings", {"model": "absent", "input": "a"})
    assert absent.status == 404 and absent.error["code"] == "model_not_found"
    reply = live.post("/v1/embeddings", {"model": "lora", "input": "a", "user": "me", "colour": 1})
    assert reply.status == 200 and reply.headers["X-Ignored-Fields"] == "colour, user"
