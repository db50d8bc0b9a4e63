"""A base's manifest, real adapter folders made without torch, and a registry to put them in."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from graft.hub.web.app import create_app
from graft.hub.web.large_bodies import admit_large_body

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from graft.hub.base.manifest import BaseSpec, ModuleSpec
from graft.hub.cli.hub_server import http_server
from graft.hub.registry.registry import Registry

HIDDEN, LAYERS, INNER, KV = 32, 2, 64, 16


def base_spec(id: str = "acme/tiny-llama", fingerprint: str = "f" * 64) -> BaseSpec:
    """A Llama-like base: two layers of the usual seven projections."""
    modules = {}
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN, KV),
        "self_attn.v_proj": (HIDDEN, KV),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (HIDDEN, INNER),
        "mlp.up_proj": (HIDDEN, INNER),
        "mlp.down_proj": (INNER, HIDDEN),
    }
    for layer in range(LAYERS):
        for part, (into, out) in shapes.items():
            modules[f"model.layers.{layer}.{part}"] = ModuleSpec("linear", into, out, bias=False)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            modules[f"model.layers.{layer}.{norm}"] = ModuleSpec("norm", HIDDEN, HIDDEN, bias=False)
    return BaseSpec(
        id=id,
        fingerprint=fingerprint,
        model_type="llama",
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        vocab_size=100,
        max_positions=128,
        learned_positions=False,
        rotary=True,
        parallel_residual=False,
        norm_first=True,
        parameters=20_000,
        modules=modules,
    )


def lora_folder(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    task: str = "news-topic",
    base: str = "acme/tiny-llama",
    license: str = "apache-2.0",
    fingerprint: str | None = "f" * 64,
    card: str | None = None,
) -> Path:
    """A PEFT LoRA folder on the q and v projections, card and provenance included."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(LAYERS):
        for part, out in (("q_proj", HIDDEN), ("v_proj", KV)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            tensors[f"{name}.lora_A.weight"] = random.standard_normal((rank, HIDDEN)).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = random.standard_normal((out, rank)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if fingerprint:
        provenance = {"base": {"id": base, "fingerprint": fingerprint}, "config": {"seed": seed}}
        (folder / "graft.json").write_text(json.dumps(provenance))
    text = card or (
        f"---\nbase_model: {base}\nlicense: {license}\nlibrary_name: peft\npipeline_tag: text-generation\n"
        f"tags:\n- lora\n- task:{task}\n---\n# A LoRA for {task}\n\nIt was trained on headlines.\n"
    )
    (folder / "README.md").write_text(text)
    return folder


@pytest.fixture(name="base_spec")
def base_spec_fixture():
    """`base_spec(id, fingerprint)` makes a manifest."""
    return base_spec


@pytest.fixture(name="lora_folder")
def lora_folder_fixture():
    """`lora_folder(path, seed=, rank=, task=, ...)` writes an adapter."""
    return lora_folder


@pytest.fixture
def spec() -> BaseSpec:
    return base_spec()


@pytest.fixture
def registry(tmp_path: Path, spec: BaseSpec) -> Registry:
    registry = Registry(tmp_path / "registry.db")
    registry.add_base(spec)
    return registry


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return lora_folder(tmp_path / "news-lora")


@pytest.fixture(scope="session")
def running() -> Iterator[dict]:
    """One server, as `graft hub serve` makes it, for all tests: it answers with the application under "app", at "url"."""
    current: dict = {}
    server = http_server(
        lambda *call: current["app"](*call),
        "127.0.0.1",
        0,
        threads=16,
        admits=lambda *head: admit_large_body(current["app"], *head),
    )
    threading.Thread(target=server.run, daemon=True).start()
    current["url"] = f"http://127.0.0.1:{server.effective_port}"
    yield current


@pytest.fixture
def hub(running: dict, registry: Registry) -> str:
    """The address of a running hub over the test's registry."""
    running["app"] = create_app(registry)
    return running["url"]
