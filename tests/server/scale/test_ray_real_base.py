"""Two replicas of the real base behind an ingress, as one server answers: the same greedy tokens in a mixed batch, wherever
placement brings each adapter.

Some minutes on two cores; the base is fetched where it is not in the cache.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from graft.hub.base.model import load_base
from graft.hub.base.named_bases import base_source
from tests.server.live import OPTIONS, serving

pytest.importorskip("ray.serve", reason="Ray Serve is in the extra `ray`")
from tests.server.scale.test_ray import cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DATA = Path(__file__).parents[3] / "examples" / "tickets" / "train.jsonl"
METHODS = ("lora", "prefix", "ia3")
PROMPTS = ("The capital of France is", "Once upon a time, a dragon")
AT_ONCE = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the base, and adapters of a few steps each: they need to be different, not good."""
    top = tmp_path_factory.mktemp("real")
    command = [sys.executable, "-m", "graft.hub.cli.main"]
    subprocess.run([*command, "base", "import", "smollm2"], check=True)
    (top / "base").symlink_to(base_source("smollm2"))
    for method in METHODS:
        trained = ["train", "--base", "smollm2", "--method", method, "--data", str(DATA), "--steps", "4"]
        subprocess.run([*command, *trained, "--dtype", "float32", "--out", str(top / method)], check=True)
    return top


def test_greedy_tokens_are_those_of_one_server(place):
    folders = {method: place / method for method in METHODS}
    calls = [(model, prompt) for prompt in PROMPTS for model in (*METHODS, None)]  # None: the base
    base = load_base(str(place / "base"), device="cpu", dtype="float32")
    with serving(base, folders, options=replace(OPTIONS, cache_bytes=256 << 20)) as one:
        name = one.get("/v1/models").json["data"][0]["id"]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            alone = list(pool.map(lambda call: one.post("/v1/completions", asked(*call, name)).json, calls))
    del base
    given = [word for method, folder in folders.items() for word in ("--adapter", f"{method}={folder}")]
    with cluster(place, "--replicas", "2", *given) as several:
        name = several.get("/v1/models")[2]["data"][0]["id"]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            together = list(pool.map(lambda call: several.post("/v1/completions", asked(*call, name))[2], calls))
    assert len({tokens(answer) for answer in alone}) > len(PROMPTS)  # adapters make a difference
    assert [tokens(answer) for answer in together] == [tokens(answer) for answer in alone]


def asked(model, prompt, base):
    return {"model": model or base, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 1}


def tokens(answer):
    return tuple(answer["choices"][0]["logprobs"]["tokens"])
