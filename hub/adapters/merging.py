"""Adapters merged into a copy of their base, or summed.

Every operation is exact up to rounding, and refuses by name what it can't do exactly. Knows forms and the base's
weights; nothing of training or serving.
"""

import operator
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graft.hub.adapters.artifact import Artifact
from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.methods.lora import LoraConfig
from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.adapters.serving_forms import Form, LowRank, Vector
from graft.hub.base.hook_points import Tap
from graft.hub.base.manifest import BaseSpec
from graft.hub.base.model import Base
from graft.hub.errors import ArtifactError, GraftError, UnsupportedMethodError

_CHECK_TOKENS = 24
_TOLERANCE = 1e-3  # of log-probabilities in float32
_CANCELLED = 1e-6  # of the parts: float32's rounding


# Merging


def merge(artifact: Artifact, base: Base, *, check: bool = True) -> float:
    """Change `base`'s own weights so that it answers as it did with the adapter. -> largest difference found.

    `base` must be float32 and is used up: it is no longer the base it was. Raises UnsupportedMethodError for a
    kind that is no change of weights, before anything is changed; GraftError where the merged base answers
    differently.
    """
    if base.dtype != torch.float32:
        raise GraftError("Merge in float32, and round once at the end: load the base with dtype float32.")
    forms = artifact.fold(base)
    # a step's order: the base's value, then Vectors, then LowRanks
    ordered = sorted(forms, key=lambda form: isinstance(form, LowRank))
    changes = [_change(artifact.method.title, form, base) for form in ordered]
    expected = _log_probs(base, forms) if check else None
    with torch.no_grad():
        for form, module in changes:
            _apply(form, module)
    if expected is None:
        return 0.0
    difference = (_log_probs(base, ()) - expected).abs().max().item()
    if not difference < _TOLERANCE:
        raise GraftError(
            f"The merged base's log-probabilities differ from the adapter's by {difference:.2g}, more than "
            f"{_TOLERANCE:g}: nothing was saved. Please report this as a bug."
        )
    return difference


def _change(title: str, form: Form, base: Base) -> tuple[LowRank | Vector, nn.Module]:
    """The module whose weights a form changes. Raises UnsupportedMethodError where it changes none."""
    tap = _weight_tap(form)
    if tap is None or not isinstance(form, (LowRank, Vector)):
        raise UnsupportedMethodError(
            f"{title} can't be merged: it is no change of the base's weights, but rows or layers of its own. "
            f"Serve it beside the base instead."
        )
    module = base.model.get_submodule(tap.module)
    embedding = base.model.get_input_embeddings()
    if getattr(module, "weight", None) is embedding.weight:
        raise UnsupportedMethodError(
            f"{title} changes {tap.module}, whose weight is also this base's embedding: merging would change both."
        )
    moves = form.b if isinstance(form, LowRank) else form.bias
    if moves is not None and base.bias(tap.module) is None:
        raise UnsupportedMethodError(
            f"{title} adds a bias to {tap.module}, and a {base.spec.model_type} base has no place for one: its "
            f"configuration knows no bias there. Serve it beside the base instead."
        )
    return form, module


def _weight_tap(form: Form) -> Tap | None:
    """Where the form acts, if it acts on one linear's or norm's weights."""
    if isinstance(form, Vector):
        return form.tap
    if isinstance(form, LowRank) and form.activation == "none" and form.a is None and form.adds_to.side == "out":
        return form.adds_to if form.reads == (Tap(form.adds_to.module, "in"),) else None
    return None


def _apply(form: LowRank | Vector, module: nn.Module) -> None:
    """Change weight and bias in place."""
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    weight = own["weight"].T if isinstance(module, Conv1D) else own["weight"]  # [out, in]; [d] of a norm
    if isinstance(form, LowRank):
        weight += (form.B * form.scale).T @ form.A
        if form.b is not None:
            own["bias"] += form.b * form.scale
    elif form.tap.side == "in":
        assert form.scale is not None  # no method shifts an input
        weight *= form.scale[None, :]
    else:
        if form.scale is not None:
            weight *= form.scale[:, None] if weight.ndim == 2 else form.scale
            if "bias" in own:
                own["bias"] *= form.scale
        if form.bias is not None:
            own["bias"] += form.bias


def _log_probs(base: Base, forms: Sequence[Form]) -> Tensor:
    """[T, V] of a fixed random text."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(base.spec.vocab_size, (_CHECK_TOKENS,), generator=generator).to(base.device)
    rows = RowOwners(0, (len(ids),))
    step = Step(Stack([forms], base.dtype, base.device), rows, lm_head=base.spec.parts.lm_head) if forms else None
    context = PackedAttention([len(ids)], None, base.device)
    with torch.no_grad():
        logits = base.forward(base.embed(ids), torch.arange(len(ids), device=base.device), context, step)
    return logits.float().log_softmax(-1)


# Sums


def weighted_sum(parts: Sequence[tuple[Artifact, float]], base: Base) -> tuple[LoraConfig, dict[str, Tensor]]:
    """A LoRA whose every change of a weight is the weighted sum of the parts': ranks side by side, exactly.

    Raises UnsupportedMethodError for parts that are not plain LoRAs.
    """
    ranks: dict[str, int] = {}
    pieces: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for artifact, weight in parts:
        config = artifact.config
        if not isinstance(config, LoraConfig) or config.dora or config.lora_bias or config.bias != "none":
            raise UnsupportedMethodError(
                f"Only plain LoRAs can be summed exactly, not {artifact.method.title} {artifact.method.variant(config)}."
            )
        for form in artifact.fold(base):
            assert isinstance(form, LowRank)  # a plain LoRA folds to nothing else
            name = form.adds_to.module
            pieces.setdefault(name, []).append((form.A, form.B * (form.scale * weight)))
            ranks[name] = ranks.get(name, 0) + form.A.shape[0]
    _require_effect(pieces)
    most = max(ranks.values())
    differing = {name: rank for name, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most, alpha=float(most), targets=tuple(sorted(ranks)),
        rank_pattern=differing, alpha_pattern={name: float(rank) for name, rank in differing.items()},
    )  # fmt: skip
    tensors = {}
    for name, own in pieces.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.cat([A for A, _ in own])
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.cat([B for _, B in own]).T
    return config, tensors


def _require_effect(pieces: Mapping[str, Sequence[tuple[Tensor, Tensor]]]) -> None:
    """Raises ArtifactError for parts that cancel each other out everywhere: the sum would change nothing."""
    for own in pieces.values():
        changes = [A.T @ B for A, B in own]
        if reduce(operator.add, changes).norm() > _CANCELLED * sum(change.norm() for change in changes):
            return
    raise ArtifactError("These weights make the parts cancel each other out: the sum would change nothing.")


def lineage(parts: Sequence[tuple[Artifact, float]], spec: BaseSpec) -> dict[str, object]:
    """graft.json of a sum: which artifacts, by digest, with which weights."""
    return {
        "format": 1,
        "base": {"id": spec.id, "fingerprint": spec.fingerprint},
        "method": "lora",
        "parents": [{"digest": artifact.digest, "weight": weight} for artifact, weight in parts],
    }
