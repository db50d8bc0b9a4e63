"""Bases of the standard base's family in other sizes: what a row of them computes, and folders with random weights.

Random weights measure speed and memory, not quality. The larger sizes are for arithmetic alone (roofline.py).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from graft.hub.base.manifest import BaseSpec, record
from graft.hub.base.model import load_base, with_id


@dataclass(frozen=True)
class Shape:
    """What costs time in a base: weights that every token meets, and what it keeps of each."""

    linears: tuple[tuple[int, int], ...]  # (in, out) of every linear of the layers
    head: tuple[int, int]  # (hidden size, vocabulary)
    cache_width: int  # keys and values of one token in all layers

    @property
    def body_weights(self) -> int:
        return sum(width * out for width, out in self.linears)

    @property
    def head_weights(self) -> int:
        return self.head[0] * self.head[1]

    @property
    def weights(self) -> int:
        return self.body_weights + self.head_weights

    @property
    def widest(self) -> tuple[int, int]:
        return max(self.linears, key=lambda linear: linear[1])

    def lora_weights(self, rank: int) -> int:
        """Of one LoRA on all linears of the layers."""
        return sum(rank * (width + out) for width, out in self.linears)

    @staticmethod
    def of(spec: BaseSpec) -> "Shape":
        layers = spec.parts.layers
        linears = tuple(
            (module.in_features, module.out_features)
            for name, module in spec.modules.items()
            if module.kind == "linear" and name.startswith(f"{layers}.")
        )
        cache_width = 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim
        return Shape(linears, (spec.hidden_size, spec.vocab_size), cache_width)


@dataclass(frozen=True)
class Size:
    """The sizes of a Llama-shaped base."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 49152

    @property
    def shape(self) -> Shape:
        head_dim = self.hidden // self.heads
        queries, keys = (self.hidden, self.hidden), (self.hidden, self.kv_heads * head_dim)
        wide = (self.hidden, self.intermediate)
        layer = (queries, keys, keys, queries, wide, wide, wide[::-1])
        return Shape(layer * self.layers, (self.hidden, self.vocabulary), 2 * self.layers * keys[1])


SIZES = {  # by weights that a token meets, in thousand millions
    "0.135": Size(576, 1536, 30, 9, 3),
    "0.36": Size(960, 2560, 32, 15, 5),
    "1.7": Size(2048, 8192, 24, 32, 32),
    "7.5": Size(4096, 14336, 32, 32, 8, vocabulary=128256),
}


def made(size: Size, standard: Path, cache: Path) -> Path:
    """A folder with a base of that size: the standard one's tokenizer and configuration, random bf16 weights."""
    folder = cache / "sizes" / f"{size.hidden}x{size.layers}"
    if not (folder / "graft-base.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(standard, folder, ignore=shutil.ignore_patterns("*.safetensors*", "graft-base.json"))
        config = json.loads((standard / "config.json").read_text()) | {
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.hidden // size.heads,
        }
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
        model.save_pretrained(folder)
        record(folder, with_id(load_base(folder).spec, f"bench/llama-{size.hidden}x{size.layers}"))
    return folder
