"""`graft bench` as a user types it, on an engine of its own and against a server."""

import json

import pytest
from click.testing import CliRunner

from graft.hub.base.manifest import record
from graft.hub.cli.main import main
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import serving

LOAD = ["--requests", "4", "--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "1"]
DRAWING = ["--temperature", "1", "--top-p", "0.9", "--seed", "3", "--logprobs", "2"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base's folder and an adapter's."""
    top, base = tmp_path_factory.mktemp("bench"), tiny_base("llama")
    base.model.save_pretrained(top / "base")
    base.tokenizer.save_pretrained(top / "base")
    record(top / "base", base.spec)
    return top / "base", write_folder(top / "lora", "lora", base)


def bench(*words):
    done = CliRunner().invoke(main, ["bench", *map(str, words), *LOAD])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("drawing", [[], DRAWING], ids=["greedy", "drawn"])
def test_an_engine_of_its_own(places, drawing):
    base, adapter = places
    options = ["--base", base, "--adapters", adapter, "--device", "cpu", "--dtype", "float32"]
    found = json.loads(bench(*options, *drawing, "--json"))
    assert found["tokens_per_s"] > 0 and found["ttft_ms"]["p50"] > 0
    assert found["sampling"]["temperature"] == (1 if drawing else 0)
    assert "tokens_per_s" in bench(*options, *drawing)


def test_a_server(places):
    base = tiny_base("llama")
    with serving(base, {"lora": places[1]}) as live:
        found = json.loads(bench("--url", live.url, "--base", places[0], "--adapters", "lora", "--json"))
    assert found["tokens_per_s"] > 0


@pytest.mark.parametrize(
    "words", [("--rate", "inf"), ("--zipf", "nan"), ("--temperature", "nan"), ("--cold-rate", "inf")]
)
def test_no_finite_number_is_said(words):
    refused = CliRunner().invoke(main, ["bench", *words])
    assert refused.exit_code == 2 and f"{words[1]} is no finite number" in refused.output
