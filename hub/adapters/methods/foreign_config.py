"""What the keys of a PEFT adapter_config.json mean that a method here doesn't read, and how its tensors may be named.

PEFT defines the format, so an adapter means what PEFT computes from it. PEFT drops a key that it doesn't know: what other
trainers add for their optimisers can't change the result, and is dropped here too, and named. Refused, by name, is what is
set and may change the result: PEFT's own options that are not served; a key that PEFT doesn't know in a config by a newer
PEFT than is known here, which may have brought it; and a switch of a LoRA kin from a fork (`use_mora`). Torch-free.
"""

import re
from collections.abc import Collection

from graft.hub.adapters.methods.method import PEFT_PREFIX, Raw
from graft.hub.errors import UnsupportedMethodError

KNOWN_PEFT = (0, 21)  # whose options are all in PEFT_OPTIONS
PEFT_COMMON = frozenset(
    [
        "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
        "graft",
    ]
)  # fmt: skip  # they say nothing about what is computed
PEFT_OPTIONS = frozenset(
    [
        "alora_invocation_tokens", "alpha_pattern", "arrow_config", "bias", "corda_config", "encoder_dropout",
        "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type", "ensure_weight_tying", "eva_config",
        "exclude_modules", "fan_in_fan_out", "feedforward_modules", "init_ia3_weights", "init_lora_weights", "init_weights",
        "kasa_config", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
        "lora_bias", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "modules_to_save",
        "monteclora_config", "num_attention_heads", "num_frozen_tokens", "num_layers", "num_transformer_submodules",
        "num_virtual_tokens", "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text", "qalora_group_size",
        "r", "rank_pattern", "runtime_config", "target_modules", "target_parameters", "token_dim", "tokenizer_kwargs",
        "tokenizer_name_or_path", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora",
        "velora_config",
    ]
)  # fmt: skip
_WRAPPERS = re.compile(r"\A(module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile
_KIN_SWITCH = re.compile(r"use_\w*ra")
_UNSET: tuple[object, ...] = (None, False, "", [], {}, ())


def refuse_options(owner: str, raw: Raw, neutral: Collection[str]) -> None:
    """Raises UnsupportedMethodError naming an option that is set, may change what is served, and is not served.

    `neutral`: the keys that the method reads, or that change nothing.
    """
    newer = _version(raw) > KNOWN_PEFT
    for key, value in raw.items():
        if key in neutral or value in _UNSET:
            continue
        if key in PEFT_OPTIONS or _KIN_SWITCH.fullmatch(key):
            raise UnsupportedMethodError(
                f"This {owner} adapter sets {key}={str(value)[:80]}, which graft does not serve per request. "
                f"Train it without {key}, or merge it into its own copy of the base."
            )
        if newer and key not in PEFT_COMMON:
            raise UnsupportedMethodError(
                f"This {owner} adapter sets {key}={str(value)[:80]}. graft does not know it, and PEFT "
                f"{raw['peft_version']}, which wrote it, is newer than what graft knows: it may change what is computed. "
                f"If it is only for training, take it out of adapter_config.json."
            )


def dropped_options(raw: Raw) -> list[str]:
    """Keys of a PEFT config that are set and that PEFT doesn't know: of no effect, there as here."""
    if "peft_type" not in raw:
        return []
    return sorted(key for key, value in raw.items() if key not in PEFT_COMMON | PEFT_OPTIONS and value not in _UNSET)


def peft_name(name: str) -> str:
    """A tensor's name as PEFT writes it: without what wraps a model in training, with the prefix that converters drop."""
    bare = _WRAPPERS.sub("", name)
    return bare if bare.startswith(PEFT_PREFIX) else PEFT_PREFIX + bare


def _version(raw: Raw) -> tuple[int, ...]:
    """Of the PEFT that wrote a config, its first two numbers; () where it doesn't say, as before 0.17."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})", str(raw.get("peft_version") or ""))
    return tuple(int(number) for number in match.groups()) if match else ()
