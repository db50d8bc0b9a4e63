"""Plain `vllm serve` on a live hub: what is served by an adapter's name is that version's text, as transformers and PEFT have it.

In an environment of vLLM's own (benchmarks/peers/venvs.py makes it) with graft installed on top, under build/clients/vllm.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.lib.harness import CACHE
from benchmarks.peers.venvs import vllm_python
from graft.hub.base.manifest import record
from graft.hub.base.model import Base
from graft.hub.registry.registry import Registry
from tests.conftest import VOCAB, tiny_tokenizer
from tests.server.conftest import write_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[3]
OVERLAY = ROOT / "build" / "clients" / "vllm"
PROMPT = [17, 90, 33, 64, 12, 5, 200, 41] * 5  # longer than vLLM's blocks
NEW = 12
STARTS_S = 300


def run(command: list[str | Path]) -> None:
    """Skips with the command that failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def python() -> Path:
    """vLLM's interpreter, with this graft on top: its dependencies have to suit vLLM's."""
    try:
        below = vllm_python(CACHE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{' '.join(map(str, error.cmd))} failed")
    mine = OVERLAY / "bin" / "python"
    if not mine.exists():
        run([sys.executable, "-m", "venv", OVERLAY])
        packages = next(below.parents[1].glob("lib/*/site-packages"))
        (next(OVERLAY.glob("lib/*/site-packages")) / "zz_vllm.pth").write_text(f"{packages}\n")
    run([mine, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", ROOT])
    return mine


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    """The smallest Llama that vLLM's attention takes, in a folder as `graft base import` leaves it."""
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        "llama", vocab_size=VOCAB, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    folder = tmp_path_factory.mktemp("base") / "tiny"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    base = Base(model.eval(), tiny_tokenizer(), id="test/tiny", source=str(folder))
    record(folder, base.spec)
    return base


def continued(base: Base, adapter: Path | None) -> list[int]:
    """What is most probable after PROMPT, by transformers and PEFT."""
    model = AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        made = model.generate(
            input_ids=torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
            max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False,
        )  # fmt: skip
    return made[0, len(PROMPT) :].tolist()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Vllm:
    """A running `vllm serve`."""

    def __init__(self, python: Path, base: Base, hub: str, work: Path):
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GRAFT_", "VLLM_"))}
        settings = {
            "GRAFT_HUB": hub, "GRAFT_CACHE": str(work / "cache"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(work / "home"), "HF_ENDPOINT": "http://127.0.0.1:9",
        }  # fmt: skip
        words = (
            f"--model {base.source} --host 127.0.0.1 --port {port} --served-model-name base --dtype float32 --enforce-eager "
            "--max-model-len 128 --max-num-seqs 8 --enable-lora --max-loras 4 --max-lora-rank 16 --enable-prefix-caching"
        ).split()
        self.log = work / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                # What `vllm serve` runs; vllm-cpu's own command fails for it asks for the version of a package `vllm`.
                [python, "-m", "vllm.entrypoints.openai.api_server", *words],
                env=kept | settings,
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        until = time.monotonic() + STARTS_S
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"vLLM did not start: {self.log.read_text()[-3000:]}")

    def post(self, path: str, body: dict) -> tuple[int, dict]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        return status, json.loads(text) if text.startswith("{") else {"text": text}

    def continued(self, model: str) -> list[int]:
        body = {"prompt": PROMPT, "max_tokens": NEW, "min_tokens": NEW, "temperature": 0, "return_token_ids": True}
        status, answer = self.post("/v1/completions", {"model": model, **body})
        assert status == 200, answer
        return answer["choices"][0]["token_ids"]


@pytest.fixture
def vllm(python, base, hub, tmp_path):
    server = Vllm(python, base, hub, tmp_path)
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


def test_vllm_serves_adapters_of_a_hub_by_name(vllm: Vllm, base: Base, registry: Registry, tmp_path: Path) -> None:
    registry.add_base(base.spec)
    folders = [write_folder(tmp_path / f"lora{seed}", "lora", base, seed) for seed in (1, 2)]
    old, new = (registry.publish(folder, "ann/news") for folder in folders)
    expected = {None: continued(base, None)} | {i: continued(base, folder) for i, folder in enumerate(folders)}
    assert len({tuple(ids) for ids in expected.values()}) == 3
    registry.promote(f"ann/news@{old.id}", "production")
    assert vllm.continued("base") == expected[None]
    for _ in range(2):  # the second time with keys and values that were kept
        assert vllm.continued("ann/news@production") == expected[0]
    # A new version meets nothing of the old one, once vLLM asks again.
    registry.promote(f"ann/news@{new.id}", "production")
    assert vllm.post("/v1/unload_lora_adapter", {"lora_name": "ann/news@production"})[0] == 200
    assert vllm.continued("ann/news@production") == expected[1]
    assert vllm.continued(f"ann/news@{old.id}") == expected[0]
    # Several names of one version, and others, in one batch. (Not the base's rows: on a CPU vLLM gives them the last slot's adapter.)
    names = {"ann/news@production": 1, "ann/news": 1, f"ann/news@{new.id}": 1, f"ann/news@{old.id}": 0}
    with ThreadPoolExecutor(len(names)) as pool:
        for name, got in zip(names, pool.map(vllm.continued, names), strict=True):
            assert got == expected[names[name]], name
    # What vLLM can't take is told in words, and harms nobody.
    registry.publish(write_folder(tmp_path / "ia3", "ia3", base), "ann/gates")
    registry.publish(write_folder(tmp_path / "dora", "dora", base), "ann/dora")
    for name, status, words in (
        ("ann/gates", 422, "graft serve"),
        ("ann/dora", 422, "DoRA"),
        ("ann/news@staging", 404, "staging"),
        ("ann/absent", 404, "does not exist"),
    ):
        got, answer = vllm.post("/v1/completions", {"model": name, "prompt": PROMPT, "max_tokens": 1})
        assert got == status and words in answer["error"]["message"], answer
    assert vllm.continued("ann/news") == expected[1]
