"""The table of methods and variants under test, and the ways to run them: trained, served, mixed, alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.methods import METHODS, InitContext, Method
from graft.hub.adapters.packed_attention import PackedAttention, cache_rows
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows
from graft.hub.base.manifest import BaseSpec
from graft.hub.base.model import Base
from tests.conftest import tiny_base, tiny_model

TEXTS = ((5, 17, 90, 33), (21, 8, 8, 140, 60, 7, 201, 11, 3, 45), (77, 76, 75, 74, 73, 72, 71))
LONG = torch.tensor(TEXTS[1])  # longer than the windows of the tiny bases


def _last(part: str) -> str:
    return part.rpartition(".")[2]


# variant -> (method, options as `--set` takes them, of the base's spec where they name modules)
VARIANTS: dict[str, tuple[str, dict[str, str] | Callable[[BaseSpec], dict[str, str]]]] = {
    "lora": ("lora", {}),
    "lora rank 3, some modules": (
        "lora",
        lambda s: {"r": "3", "alpha": "5", "targets": f"{_last(s.parts.values)},{_last(s.parts.mlp_out)}"},
    ),
    "lora gaussian": ("lora", {"r": "4", "init": "gaussian"}),
    "rsLoRA": ("lora", {"r": "4", "alpha": "3", "rslora": "true"}),
    "DoRA": ("lora", {"r": "4", "dora": "true"}),
    "DoRA, all biases": ("lora", {"r": "2", "dora": "true", "bias": "all"}),
    "LoRA bias": ("lora", {"r": "4", "lora_bias": "true"}),
    "bias=all": ("lora", lambda s: {"r": "2", "bias": "all", "targets": _last(s.parts.values)}),
    "bias=lora_only": ("lora", {"r": "2", "bias": "lora_only"}),
    "lora patterns": (
        "lora",
        lambda s: {
            "rank_pattern": f"{s.parts.layers}.0.{s.parts.mlp_out}:2,{s.parts.attn_out}:5",
            "alpha_pattern": f"{s.parts.attn_out}:3.5",
        },
    ),
    "lora in one layer": ("lora", {"layers": "1"}),
    "houlsby": ("series", {"bottleneck": "6"}),
    "houlsby zero": ("series", {"bottleneck": "6", "init": "zero", "activation": "gelu_new"}),
    "pfeiffer": ("series", {"placement": "pfeiffer", "bottleneck": "5", "activation": "relu", "leave_out": "0"}),
    "houlsby of the stream": ("series", {"reads": "stream", "bottleneck": "4", "activation": "gelu", "scale": "0.5"}),
    "pfeiffer of the stream": ("series", {"placement": "pfeiffer", "reads": "stream", "activation": "relu"}),
    "series per linear": (
        "series",
        lambda s: {
            "placement": "linear", "bottleneck": "4", "activation": "tanh",
            "targets": ",".join({_last(part) for part in s.parts.linears}),
        },
    ),
    "series after one linear": ("series", {"placement": "linear", "bottleneck": "4", "activation": "leakyrelu"}),
    "parallel": ("parallel", {"bottleneck": "6"}),
    "parallel of the stream": ("parallel", {"bottleneck": "6", "reads": "stream", "activation": "sigmoid"}),
    "parallel, learned scale": ("parallel", {"bottleneck": "3", "learned_scale": "true", "leave_out": "1"}),
    "parallel per linear": ("parallel", {"placement": "linear", "bottleneck": "4", "scale": "2", "activation": "tanh"}),
    "prompt": ("prompt", {"tokens": "4"}),
    "prompt of labels": ("prompt", {"tokens": "7", "init": "labels"}),
    "prompt of a text": ("prompt", {"tokens": "3", "init": "text", "text": "Classify:"}),
    "prompt at random": ("prompt", {"tokens": "1", "init": "random"}),
    "ptuning lstm": ("ptuning", {"tokens": "5", "hidden": "6", "encoder": "lstm"}),
    "ptuning mlp": ("ptuning", {"tokens": "2", "hidden": "8", "encoder": "mlp"}),
    "prefix": ("prefix", {"tokens": "6"}),
    "prefix at random": ("prefix", {"tokens": "3", "init": "random"}),
    "prefix mlp": ("prefix", {"tokens": "4", "projection": "true", "hidden": "8"}),
    "prefix beside the text": ("prefix", {"tokens": "2", "shifts_text": "false"}),
    "bitfit": ("bitfit", {}),
    "bitfit on values": ("bitfit", lambda s: {"targets": _last(s.parts.values)}),
    "ia3": ("ia3", {}),
    "ia3 everywhere": (
        "ia3",
        lambda s: {
            "targets": ",".join({_last(part) for part in s.parts.linears}), "feedforward": _last(s.parts.mlp_in[0]),
        },
    ),
}  # fmt: skip

# What its papers say: before training the base's own answers (series adapters: nearly)
NEARLY_IDENTITY = {
    "houlsby", "pfeiffer", "houlsby of the stream", "pfeiffer of the stream", "series per linear",
    "series after one linear",
}  # fmt: skip
NOT_IDENTITY = {name for name, (method, _) in VARIANTS.items() if method in ("prompt", "ptuning", "prefix")}
IDENTITY = VARIANTS.keys() - NEARLY_IDENTITY - NOT_IDENTITY


@dataclass(frozen=True)
class Case:
    """One variant on one tiny base. `parameters` are far from their start, as after training."""

    base: Base
    method: Method
    config: object
    fresh: dict[str, Tensor]
    parameters: dict[str, Tensor]

    def forms(self, parameters: dict[str, Tensor]) -> tuple[Form, ...]:
        """As the trainer folds them, with autograd."""
        return self.method.fold(self.config, self.method.encode(self.config, parameters), self.base)


@cache
def base_of(family: str) -> Base:
    return tiny_base(family)


@cache
def eager_model(family: str):
    """transformers' own attention in plain torch: its sdpa leaves soft-caps out, and older versions take that for Gemma 2."""
    model = tiny_model(family)
    model.set_attn_implementation("eager")
    return model


@cache
def case(family: str, variant: str) -> Case:
    name, options = VARIANTS[variant]
    base, method = base_of(family), METHODS[name]
    config = method.from_options(options(base.spec) if callable(options) else options, base.spec)
    generator = torch.Generator().manual_seed(7)
    fresh = method.init(config, InitContext(base, generator, texts=TEXTS, labels=("yes", "no")))
    trained = {key: p + 0.2 * torch.randn(p.shape, generator=generator) for key, p in fresh.items()}
    return Case(base, method, config, fresh, trained)


def served_rows(base: Base, forms: Sequence[Form]) -> CacheRows | None:
    """What a server keeps before the text: prompt rows are run through the base once."""
    for form in forms:
        if isinstance(form, CacheRows):
            return form
        if isinstance(form, InputRows):
            return cache_rows(base, form.rows, step_of(base, forms, len(form.rows), logits=1))
    return None


def step_of(base: Base, forms: Sequence[Form], rows: int, logits: int | None = None) -> Step:
    """The step of one adapter alone."""
    stack = Stack([forms], base.dtype, base.device)
    logit_rows = None if logits is None else RowOwners(0, (logits,))
    return Step(stack, RowOwners(0, (rows,)), lm_head=base.spec.parts.lm_head, logit_rows=logit_rows)


def trained_logits(base: Base, forms: Sequence[Form], ids: Tensor) -> Tensor:
    """One sequence as the trainer runs it: prompt rows before the embeddings. ids [T] -> [T, V]."""
    before = [form for form in forms if isinstance(form, InputRows)]
    prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
    rows = torch.cat([*(form.rows for form in before), base.embed(ids)])
    start = prefix.text_start if prefix else 0
    positions = torch.arange(start, start + len(rows))
    context = PackedAttention([len(rows)], [prefix], base.device)
    with base.attachment.activate(step_of(base, forms, len(rows))):
        return base.forward(rows, positions, context)[len(rows) - len(ids) :]


def served_logits(
    base: Base, requests: Sequence[tuple[Sequence[Form] | None, Tensor]], *, detours: bool = True
) -> list[Tensor]:
    """Several sequences in one packed batch as a server runs them; None is the bare base. -> [T_i, V] each.

    The rows go sorted: bare base first, then adapter by adapter (by identity of the forms' tuple).
    """
    order = sorted(range(len(requests)), key=lambda i: (requests[i][0] is not None, id(requests[i][0])))
    adapters = list({id(forms): forms for i in order if (forms := requests[i][0]) is not None}.values())
    before = {id(forms): served_rows(base, forms) for forms in adapters}
    prefixes, positions, lengths = [], [], []
    for i in order:
        forms, ids = requests[i]
        prefix = before.get(id(forms))
        start = prefix.text_start if prefix else 0
        prefixes.append(prefix)
        positions.append(torch.arange(start, start + len(ids)))
        lengths.append(len(ids))
    owned = [sum(len(requests[i][1]) for i in order if requests[i][0] is forms) for forms in adapters]
    rows = RowOwners(sum(lengths) - sum(owned), tuple(owned))
    step = None
    if detours and adapters:
        step = Step(Stack(adapters, base.dtype, base.device), rows, lm_head=base.spec.parts.lm_head)
    context = PackedAttention(lengths, prefixes, base.device)
    embedded = base.embed(torch.cat([requests[i][1] for i in order]))
    with torch.no_grad():
        logits = base.forward(embedded, torch.cat(positions), context, step).split(lengths)
    placed = dict(zip(order, logits, strict=True))
    return [placed[i] for i in range(len(requests))]
