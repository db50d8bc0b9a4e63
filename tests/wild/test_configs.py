"""K4 and K13: configs and tensor names as other trainers write them.

Reports: https://github.com/modelscope/ms-swift/issues/3141, https://github.com/huggingface/peft/issues/1511 and /2340,
https://github.com/oobabooga/textgen/issues/6819 (keys of other trainers, of newer and older versions),
https://github.com/meta-pytorch/torchtune/issues/2537 and vLLM's vllm/lora/utils.py (names without PEFT's prefix),
https://github.com/huggingface/peft/issues/2699 and https://github.com/vllm-project/vllm/issues/41754 (names of another
model). What is right is what PEFT computes: it drops keys that it doesn't know; what may change the result is refused.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters.artifact import load_artifact, save_artifact
from graft.hub.adapters.methods.foreign_config import KNOWN_PEFT, PEFT_COMMON, PEFT_OPTIONS
from graft.hub.adapters.validation import inspect_artifact
from graft.hub.errors import ArtifactError, UnsupportedMethodError
from tests.hub.adapters.methods.cases import base_of, case

SPEC = base_of("llama").spec
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound LoRA as graft writes it."""
    c = case("llama", "lora")
    save_artifact(tmp_path, c.method, c.config, c.parameters, c.base.spec)
    return tmp_path


def set_config(folder: Path, **changes) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def rename(folder: Path, change) -> Path:
    tensors = load_file(folder / WEIGHTS)
    save_file({new: tensors[name] for name in tensors if (new := change(name))}, folder / WEIGHTS)
    return folder


OWN_KEYS = [
    {"lora_dtype": "bfloat16", "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-06},  # ms-swift
    {"loraplus_lr_ratio": 16.0, "loraplus_lr_embedding": 1e-6},
    {"use_gradient_checkpointing": "unsloth", "unsloth_version": "2025.9.1", "max_seq_length": 2048},
    {
        "finetuning_type": "lora",
        "freeze_trainable_layers": 2,
        "additional_target": None,
        "name_module_trainable": "all",
    },
    {"enable_lora": True, "merge_weights": True, "is_trainable": True, "random_state": 3407},
    {"bnb_config": {"load_in_4bit": True}, "learning_rate": 2e-4, "warmup_steps": 5, "optim": "adamw_8bit"},
    {"peft_version": f"{KNOWN_PEFT[0]}.{KNOWN_PEFT[1]}.2", "lorap_emb_lr": 1e-6},
    {"peft_version": "0.18.0@ef7bb7c", "dataset": "mine", "comment": "ünï"},
]


@pytest.mark.parametrize("keys", OWN_KEYS, ids=lambda keys: next(iter(keys)))
def test_keys_that_peft_drops_are_dropped_and_named(folder: Path, keys: dict) -> None:
    plain = inspect_artifact(folder, SPEC)
    found = inspect_artifact(set_config(folder, **keys), SPEC)
    assert found.digest == plain.digest
    [said] = [text for text in found.warnings if "PEFT does not know" in text]
    assert all(key in said for key, value in keys.items() if value and key != "peft_version")


CHANGING = [
    {"layer_replication": [[0, 2], [1, 2]]}, {"alora_invocation_tokens": [5, 6]}, {"target_parameters": ["mlp.experts"]},
    {"trainable_token_indices": [3]}, {"modules_to_save": ["lm_head"]}, {"use_qalora": True}, {"use_bdlora": {"a": 1}},
    {"arrow_config": {"top_k": 2}}, {"kasa_config": {"beta": 1}}, {"monteclora_config": {"sample": 4}},
    {"megatron_config": {"a": 1}}, {"corda_config": {"a": 1}}, {"lora_ga_config": {"a": 1}},
    {"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"},
    {"init_lora_weights": "corda"}, {"init_lora_weights": "loftq"}, {"init_lora_weights": "milora"},
    {"use_mora": True}, {"use_hira": True}, {"use_delora": 1},
]  # fmt: skip


@pytest.mark.parametrize("option", CHANGING, ids=lambda option: "-".join(map(str, *option.items())))
def test_keys_that_change_what_is_computed_are_refused_by_name(folder: Path, option: dict) -> None:
    with pytest.raises(UnsupportedMethodError, match=next(iter(option))):
        inspect_artifact(set_config(folder, **option), SPEC)
    inspect_artifact(set_config(folder, **dict.fromkeys(option)), SPEC)  # at its null default it says nothing


def test_a_key_of_a_newer_peft_may_change_anything(folder: Path) -> None:
    option = {"chord_rank": 4}
    assert inspect_artifact(set_config(folder, **option), SPEC)
    with pytest.raises(UnsupportedMethodError, match=r"chord_rank.*0\.99\.0.*newer"):
        inspect_artifact(set_config(folder, **option, peft_version="0.99.0"), SPEC)
    with pytest.raises(UnsupportedMethodError, match="chord_rank"):
        inspect_artifact(set_config(folder, **option, peft_version="1.0.0.dev0"), SPEC)
    assert inspect_artifact(set_config(folder, chord_rank=None, peft_version="1.0.0"), SPEC)


@pytest.mark.parametrize(
    "option",
    [
        {"eva_config": {"rho": 2.0}, "init_lora_weights": "eva"}, {"init_lora_weights": "orthogonal"},
        {"velora_config": {"group": 4}}, {"runtime_config": {"ephemeral_gpu_offload": True}},
        {"init_lora_weights": False}, {"init_lora_weights": None}, {"loftq_config": {"loftq_bits": 4}},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_pefts_options_of_the_start_only_are_taken(folder: Path, option: dict) -> None:
    assert inspect_artifact(set_config(folder, **option), SPEC).warnings == inspect_artifact(folder, SPEC).warnings


@pytest.mark.parametrize("variant", ["prompt", "ptuning mlp", "prefix", "ia3"])
def test_the_rule_holds_for_every_method_of_peft(tmp_path: Path, variant: str) -> None:
    c = case("llama", variant)
    save_artifact(tmp_path, c.method, c.config, c.method.encode(c.config, c.parameters), c.base.spec)
    assert inspect_artifact(set_config(tmp_path, lorap_emb_lr=1e-6), SPEC).method == c.method.name
    with pytest.raises(UnsupportedMethodError, match="modules_to_save"):
        inspect_artifact(set_config(tmp_path, modules_to_save=["lm_head"]), SPEC)


def test_every_option_of_the_installed_peft_is_known() -> None:
    """The table is complete for the version that it says it knows."""
    import dataclasses

    import peft

    assert tuple(map(int, peft.__version__.split(".")[:2])) == KNOWN_PEFT
    kinds = (
        peft.LoraConfig,
        peft.IA3Config,
        peft.PromptEncoderConfig,
        peft.PromptTuningConfig,
        peft.PrefixTuningConfig,
    )
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert names <= PEFT_COMMON | PEFT_OPTIONS


# Names of tensors


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.module.{name}",
        lambda name: f"_orig_mod.{name.removeprefix('base_model.model.')}",
    ],
    ids=["no prefix", "DistributedDataParallel", "both wraps", "compiled, no prefix"],
)
@pytest.mark.parametrize("variant", ["lora", "DoRA", "bias=all", "ia3"])
def test_names_with_wraps_or_without_the_prefix_mean_the_same(tmp_path: Path, variant: str, change) -> None:
    family = "qwen2" if variant == "bias=all" else "llama"
    c = case(family, variant)
    save_artifact(tmp_path, c.method, c.config, c.parameters, c.base.spec)
    plain = load_artifact(tmp_path, c.base.spec)
    found = load_artifact(rename(tmp_path, change), c.base.spec)
    assert found.digest == plain.digest
    assert all(torch.equal(found.tensors[name], plain.tensors[name]) for name in plain.tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n.replace("lora_A.", "lora_A.lora.").replace("lora_B.", "lora_B.lora."), "lora_A.lora.weight"),
        (lambda n: n.replace("model.layers", "model.language_model.layers"), "language_model"),
        (lambda n: n.replace("self_attn", "attention"), "attention"),
        (lambda n: n.replace("base_model.model.model.", "base_model.model."), "base_model.model.layers.0"),
    ],
)
def test_other_names_are_refused_saying_what_lacks_and_what_is_there(folder: Path, change, words: str) -> None:
    with pytest.raises(ArtifactError) as refused:
        inspect_artifact(rename(folder, change), SPEC)
    said = str(refused.value)
    assert "lacks base_model.model.model.layers.0" in said and words in said.partition("It holds")[2]


def test_some_layers_only_are_named(folder: Path) -> None:
    rename(folder, lambda name: name if ".layers.1." in name else None)
    with pytest.raises(ArtifactError, match=r"lacks .*layers\.0.*of layers 1 only.*layers_to_transform"):
        inspect_artifact(folder, SPEC)
    assert inspect_artifact(set_config(folder, layers_to_transform=[1], layers_pattern="layers"), SPEC)
