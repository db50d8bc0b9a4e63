"""Adapters for the benchmarks: every kind at benchmark sizes, random weights from fixed seeds.

Random weights measure speed and memory, not quality. The folders are what `graft train` would leave, so PEFT and
vLLM load the LoRAs as they are. They are made once and kept in a cache folder.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path

from graft.hub.base.manifest import BaseSpec, recorded_spec  # before torch: importing graft says how threads wait

# isort: split
import torch

from graft.hub.adapters.artifact import save_artifact
from graft.hub.adapters.methods import get_method
from graft.hub.base.model import load_base


@dataclass(frozen=True)
class Recipe:
    """One kind of adapter at one size."""

    name: str
    method: str
    options: dict[str, str] = field(default_factory=dict)


# Bottlenecks are sized to come close to the LoRA r=16 (on SmolLM2-135M 8.9 of 9.8 MB in bf16), and not above it.
RECIPES = {
    recipe.name: recipe
    for recipe in (
        *(Recipe(f"lora-r{r}", "lora", {"r": str(r), "alpha": str(2 * r)}) for r in (4, 8, 16, 32, 64)),
        Recipe("dora-r16", "lora", {"r": "16", "alpha": "32", "dora": "true"}),
        Recipe("series", "series", {"placement": "houlsby", "bottleneck": "64"}),
        Recipe("pfeiffer", "series", {"placement": "pfeiffer", "bottleneck": "128"}),
        Recipe("parallel", "parallel", {"bottleneck": "128"}),
        Recipe("prompt", "prompt", {"tokens": "20"}),
        Recipe("ptuning", "ptuning", {"tokens": "20"}),
        Recipe("prefix", "prefix", {"tokens": "20"}),
        Recipe("ia3", "ia3"),
        Recipe("bitfit", "bitfit"),
    )
}
SIX_KINDS = ("lora-r16", "series", "parallel", "prefix", "prompt", "ia3")
SOFT_PROMPTS = ("prompt", "ptuning", "prefix")

# What a tensor's name says of its values: (pattern, mean, standard deviation). The first match counts.
_VALUES = (
    (r"lora_A", 0.0, 0.04),
    (r"magnitude", 1.0, 0.02),
    (r"ia3_l", 1.0, 0.02),
    (r"prompt_embeddings", 0.0, 0.1),
    (r"", 0.0, 0.02),
)


def make(kinds: Sequence[str], count: int, base: Path, folder: Path) -> list[Path]:
    """`count` distinct adapters, the i-th of kind i mod len(kinds); their folders, made where missing."""
    return make_for(kinds, count, recorded_spec(base) or load_base(base).spec, folder)


def make_for(kinds: Sequence[str], count: int, spec: BaseSpec, folder: Path) -> list[Path]:
    """The same for a base that lies in no folder."""
    return [_one(RECIPES[kinds[i % len(kinds)]], i, spec, folder / "adapters") for i in range(count)]


def largest_bytes(folders: Sequence[Path]) -> int:
    """Bytes of the largest weights file."""
    return max(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))


def _one(recipe: Recipe, number: int, spec: BaseSpec, parent: Path) -> Path:
    made_of = sha256(repr((recipe, _VALUES)).encode()).hexdigest()[:8]
    folder = parent / spec.fingerprint[:12] / f"{recipe.name}-{made_of}-{number:03d}"
    if not any(folder.glob("*.safetensors")):
        method = get_method(recipe.method)
        config = method.from_options(recipe.options, spec)
        draw = random.Random(1000 + number)
        tensors = {name: _value(name, shape, draw) for name, shape in method.shapes(config, spec).items()}
        save_artifact(folder, method, config, tensors, spec)
    return folder


def _value(name: str, shape: tuple[int, ...], draw: random.Random) -> torch.Tensor:
    mean, deviation = next((mean, deviation) for pattern, mean, deviation in _VALUES if re.search(pattern, name))
    start = draw.randrange(len(_noise()) - math.prod(shape))
    return (mean + deviation * _noise()[start : start + math.prod(shape)]).reshape(shape).to(torch.bfloat16)


@cache
def _noise() -> torch.Tensor:
    """Normal deviates that all tensors take their values from, each from a place of its own: quick for thousands."""
    return torch.randn(1 << 23, generator=torch.Generator().manual_seed(1234))
