"""A loaded base: the frozen model, its tokenizer, its spec, and the one way to run it.

Both rooms run a base through `Base.forward`: packed rows, explicit positions, an attention context and,
where adapters take part, a `Visitor` (detours.Step).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from graft.hub.base.architectures import Parts, family_parts
from graft.hub.base.attention import ATTENTION, AttentionContext
from graft.hub.base.download import require_fetchable
from graft.hub.base.fingerprint import fingerprint
from graft.hub.base.hooks import Attachment, Visitor
from graft.hub.base.manifest import BaseSpec, ModuleSpec, recorded_spec, require_no_adapter
from graft.hub.base.named_bases import base_source
from graft.hub.base.quantization import keep_differentiable, loading_options
from graft.hub.base.widened_products import widen_products
from graft.hub.errors import BaseModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Base:
    """A frozen causal language model, ready for adapters. Owned by the thread that runs it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        id: str | None = None,
        *,
        spec: BaseSpec | None = None,
        source: str | None = None,
    ):
        """Freezes `model` and switches it to graft's attention. `spec`: for a model that does not show it itself;
        `source`: the folder or hub id that it was loaded from.

        Raises BaseModelError for an unknown family or one whose parts are not where hub/base/architectures.py says.
        """
        model.requires_grad_(False)
        model.eval()
        model.set_attn_implementation(ATTENTION)
        # torch may prefer cuDNN's attention, which compiles anew for every length that it meets: 0.6 to 1.6 s on an H100.
        torch.backends.cuda.enable_cudnn_sdp(False)
        widen_products(model)
        self.model = model
        self.tokenizer = tokenizer
        self.source = source
        self.spec = spec or describe(model, tokenizer, id)
        self.attachment = Attachment(model)
        self._embed = model.get_input_embeddings()
        self._released: dict[str, Callable[[], Tensor]] = {}  # by module: what reads its weight
        self._restoring = Lock()

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def dtype_name(self) -> str:
        """As it is written down."""
        return dtype_text(self.dtype)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def quantized(self) -> bool:
        """Whether linears are kept in fewer bits than they compute in (hub/base/quantization.py)."""
        return getattr(self.model, "is_quantized", False)

    def weight(self, module: str) -> Tensor:
        """The weight of a linear as [out, in], whatever the family's storage (Conv1D keeps [in, out]).

        Raises BaseModelError for a quantised one, which has no such numbers any more.
        """
        submodule = self.model.get_submodule(module)
        stored = self._released.get(module)
        weight = stored() if stored else submodule.weight
        assert isinstance(weight, Tensor)
        if self.quantized and not weight.is_floating_point():
            raise BaseModelError(
                f"This needs the weights of {module}, which a quantised base has no more: load it whole."
            )
        return weight.T if isinstance(submodule, Conv1D) else weight

    def bias(self, module: str) -> Tensor | None:
        """The bias [out] of a linear or norm, None where the base has none."""
        submodule = self.model.get_submodule(module)
        return dict(submodule.named_parameters(recurse=False)).get("bias")

    def release(self, module: str, stored: Callable[[], Tensor]) -> None:
        """Give back the memory of a linear's weight that a runner holds in its own shape. `stored` reads it again, as it was
        loaded, whenever it is asked for."""
        submodule = self.model.get_submodule(module)
        assert isinstance(submodule.weight, Tensor)
        self._released[module] = stored
        submodule.weight = nn.Parameter(torch.empty_like(submodule.weight, device="meta"), requires_grad=False)

    def restore(self) -> None:
        """Read all that was released, to stay: `forward` needs it. From any thread."""
        with self._restoring:
            for module, stored in self._released.items():
                self.model.get_submodule(module).weight = nn.Parameter(stored(), requires_grad=False)
            self._released = {}

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [T] -> rows [T, H] (narrower on OPT-350m), the family's embedding scale applied."""
        return self._embed(ids)

    def forward(
        self,
        rows: Tensor,
        positions: Tensor,
        attention: AttentionContext,
        step: Visitor | None = None,
        logit_rows: Tensor | None = None,
    ) -> Tensor:
        """One pass over packed rows. rows [T, H], positions [T] -> logits [n, V].

        `logit_rows` [n] picks the rows whose logits are wanted (None: all of them). In training, wrap the
        call and the backward in `attachment.activate(step)` and pass no step here.
        """
        if self._released:
            self.restore()
        if step is not None:
            with self.attachment.activate(step):
                return self.forward(rows, positions, attention, None, logit_rows)
        output = self.model(
            inputs_embeds=rows[None],
            position_ids=positions[None],
            attention_mask=None,
            past_key_values=None,
            use_cache=False,
            logits_to_keep=0 if logit_rows is None else logit_rows,
            graft=attention,
        )
        return output.logits.squeeze(0)  # indexing would cost a second tensor as large in the backward


def load_base(
    folder: str | Path, *, dtype: str | None = None, device: str | None = None, quantize: str | None = None
) -> Base:
    """Load a base from a folder of safetensors, by a name or id it was imported under, or by its id on a model hub.

    `quantize`: "4bit" or "8bit", for training on an imported base. Raises BaseModelError with the reason when the folder is missing, unreadable or of an unknown family.
    """
    source = base_source(str(folder))
    device = usable_device(device)
    if dtype is not None and dtype not in DTYPES:
        raise BaseModelError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
    require_no_adapter(source)
    if Path(source).exists() and not (Path(source) / "config.json").exists():
        raise BaseModelError(
            f"{source} is no base folder: it has no config.json. If it holds what a base is made of, write one with "
            f"`graft base import {source} NEW_FOLDER --id ORG/NAME`."
        )
    if not Path(source).exists():
        require_fetchable(source)
    recorded = recorded_spec(source)
    if quantize and recorded is None:
        raise BaseModelError(
            f"{source} has no manifest, and quantised weights can't tell which base they are. "
            f"Import it first with `graft base import {source} DIR --id ORG/NAME`."
        )
    transformers_logging.disable_progress_bar()  # a second long, and graft shows its own
    try:
        config = AutoConfig.from_pretrained(source)
        family_parts(config.model_type)
        kind = DTYPES[dtype] if dtype else default_dtype(device, config.dtype)
        fewer_bits = loading_options(quantize, kind, device) if quantize else {}
        model = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=kind,
            attn_implementation=ATTENTION,
            use_safetensors=True,
            **fewer_bits,
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, SafetensorError) as error:
        absent = "" if Path(source).exists() else " (there is no such folder, so it was taken for a hub id)"
        raise BaseModelError(f"Can't load the base {source}{absent}: {_first_line(error)}") from error
    if quantize:
        base = Base(model, tokenizer, spec=recorded, source=source)
        keep_differentiable(model)
        return base
    move(model, device)
    return Base(model, tokenizer, recorded.id if recorded else None, source=source)


def usable_device(name: str | None) -> str:
    """The device of that name, the best of this machine for None. Raises BaseModelError for one that is not there."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise BaseModelError(
            f"There is no device {name!r}. Use cpu, cuda, or one GPU of several such as cuda:1."
        ) from None
    if kind not in ("cpu", "cuda"):
        raise BaseModelError(f"graft runs on cpu and cuda (NVIDIA GPUs), not on {name!r}.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise BaseModelError(f"The device {name!r} was asked for, but this torch sees no CUDA GPU. Use cpu.")
    if kind == "cuda" and (torch.device(name).index or 0) >= (there := torch.cuda.device_count()):
        raise BaseModelError(f"There is no device {name!r}: this machine has {there} GPUs, counted from cuda:0.")
    return name


def dtype_text(dtype: torch.dtype) -> str:
    """As it is written down: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")


def default_dtype(device: str, stored: torch.dtype | None) -> torch.dtype:
    """bf16 on a GPU, and on a CPU that multiplies it by itself for a base that is stored so; else fp32.

    The commands measure before they take it (hub/base/dtype_choice.py).
    """
    if device.startswith("cuda"):
        return torch.bfloat16
    native = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native and stored == torch.bfloat16 else torch.float32


def describe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, id: str | None) -> BaseSpec:
    """The manifest of a loaded model. Raises BaseModelError where a part of the family is missing."""
    config = model.config
    spec = BaseSpec(
        id=id,
        fingerprint=fingerprint(
            config, model.named_parameters(), tokenizer.get_vocab() if tokenizer is not None else None
        ),
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_positions=_max_positions(config),
        learned_positions=config.model_type in ("gpt2", "opt"),
        rotary=config.model_type not in ("gpt2", "opt"),
        parallel_residual=getattr(config, "use_parallel_residual", False),
        norm_first=getattr(config, "do_layer_norm_before", True),
        parameters=sum(p.numel() for p in model.parameters()),
        modules=_modules(model),
    )
    _require_parts(spec, spec.parts)
    return spec


def move(model: nn.Module, to: str | torch.dtype) -> None:
    """To a device or a dtype, in place. Asked of a plain module: transformers' `to` hides its signature."""
    model.to(to)


def with_id(spec: BaseSpec, id: str) -> BaseSpec:
    return replace(spec, id=id)


def _modules(model: nn.Module) -> dict[str, ModuleSpec]:
    specs = {}
    for name, module in model.named_modules():
        names = dict(module.named_parameters(recurse=False))
        if "weight" not in names:
            continue
        shape = tuple(names["weight"].shape)
        bias = "bias" in names
        if isinstance(module, nn.Embedding):
            specs[name] = ModuleSpec("embedding", shape[0], shape[1], bias)
        elif isinstance(module, Conv1D):
            specs[name] = ModuleSpec("linear", shape[0], shape[1], bias)
        elif isinstance(module, nn.Linear):
            specs[name] = ModuleSpec("linear", shape[1], shape[0], bias)
        elif len(shape) == 1:
            specs[name] = ModuleSpec("norm", shape[0], shape[0], bias)
    return specs


def _require_parts(spec: BaseSpec, parts: Parts) -> None:
    layer = [spec.module(0, part) for part in (*parts.linears, *parts.norms)]
    missing = [name for name in (*layer, parts.embed) if name not in spec.modules]
    if missing:
        raise BaseModelError(
            f"This {spec.model_type} base lacks {', '.join(missing)}, which hub/base/architectures.py expects of its "
            f"family. Correct the family's line in FAMILIES there."
        )


def _max_positions(config: PreTrainedConfig) -> int:
    """Longest sequence whose rotary factors do not depend on the batch (longrope, dynamic: the original)."""
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if original and rope.get("rope_type") in ("longrope", "dynamic"):
        return original
    return config.max_position_embeddings


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
