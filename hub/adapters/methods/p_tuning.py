"""P-tuning (Liu et al. 2021, arXiv 2103.10385): prompt rows made by a small encoder, folded away when saved.

encoder=lstm: embedding -> 2-layer bidirectional LSTM -> Linear, ReLU, Linear (the paper). encoder=mlp:
embedding -> three Linears with ReLU (PEFT's default). The artifact holds the encoder's output only, as in
HF PEFT's format; the encoder is kept beside it for resuming, never in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graft.hub.adapters.methods import virtual_tokens as rows
from graft.hub.adapters.methods.foreign_config import refuse_options
from graft.hub.adapters.methods.method import TRAINING_ONLY, InitContext, Method, Raw, Shape
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import GraftError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.hub.adapters.serving_forms import Form
    from graft.hub.base.model import Base

_EMBEDDING = "embedding"
_START_SCALE = 0.1  # of torch's start; measured, docs/decisions.md


@dataclass(frozen=True)
class PTuningConfig:
    tokens: int = 20
    encoder: str = field(default="lstm", metadata=TRAINING_ONLY)  # | "mlp"
    hidden: int = field(default=512, metadata=TRAINING_ONLY)  # width of the encoder, half of it each way in the LSTM
    layers: int = field(default=2, metadata=TRAINING_ONLY)  # of the LSTM

    def __post_init__(self) -> None:
        rows.require_tokens("ptuning", self.tokens)
        if self.encoder not in ("lstm", "mlp"):
            raise GraftError(f"ptuning: encoder must be lstm or mlp, not {self.encoder!r}.")
        if self.hidden % 2 or not 2 <= self.hidden <= rows.MAX_HIDDEN or not 1 <= self.layers <= rows.MAX_LAYERS:
            raise GraftError(
                f"ptuning: hidden must be an even number above 0, at most {rows.MAX_HIDDEN}; layers must lie in "
                f"1..{rows.MAX_LAYERS}."
            )


class PTuning(Method[PTuningConfig]):
    name = "ptuning"
    title = "P-tuning"
    paper = "arXiv 2103.10385"
    Config = PTuningConfig
    learning_rate = 5e-3

    def recognises(self, raw: Raw) -> bool:
        return raw.get("peft_type") == "P_TUNING"

    def read(self, raw: Raw, shapes: Mapping[str, Shape]) -> PTuningConfig:
        encoder = {
            "encoder_reparameterization_type",
            "encoder_hidden_size",
            "encoder_num_layers",
            "encoder_dropout",
        }
        refuse_options("P-tuning", raw, rows.COMMON | encoder)
        return PTuningConfig(tokens=rows.tokens_of(raw, shapes))

    def write(self, config: PTuningConfig, spec: BaseSpec) -> dict[str, object]:
        header = rows.peft_rows_header("P_TUNING", config.tokens, rows.width(spec), spec.num_heads, spec)
        return {
            **header,
            "encoder_reparameterization_type": config.encoder.upper(),
            "encoder_hidden_size": config.hidden // 2 if config.encoder == "lstm" else config.hidden,
            "encoder_num_layers": config.layers,
            "encoder_dropout": 0.0,
        }

    def variant(self, config: PTuningConfig) -> str:
        return config.encoder.upper()

    def virtual_tokens(self, config: PTuningConfig) -> int:
        return config.tokens

    def shapes(self, config: PTuningConfig, spec: BaseSpec) -> dict[str, Shape]:
        rows.require_room("ptuning", config.tokens, spec)
        return {rows.KEY: (config.tokens, rows.width(spec))}

    def init(self, config: PTuningConfig, context: InitContext) -> dict[str, Tensor]:
        import torch

        base = context.base
        # Layers draw from torch's global generator: fork it, so that this adapter's alone decides.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=context.generator)))
            encoder = _encoder(config, rows.width(base.spec))
        ids = rows.frequent_ids(config.tokens, base.spec.vocab_size, context.generator).to(base.device)
        with torch.no_grad():
            parameters = {_EMBEDDING: base.embed(ids).float().clone()}
            _start_at(encoder, parameters[_EMBEDDING].mean(0))
        for name, value in encoder.named_parameters():
            parameters[name] = value.detach().to(base.device)
        return parameters

    def encode(self, config: PTuningConfig, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from torch.func import functional_call

        embedding = parameters[_EMBEDDING]
        weights = {name: value for name, value in parameters.items() if name != _EMBEDDING}
        return {rows.KEY: functional_call(_encoder(config, embedding.shape[1], "meta"), weights, (embedding,))}

    def fold(self, config: PTuningConfig, tensors: Mapping[str, Tensor], base: Base) -> tuple[Form, ...]:
        from graft.hub.adapters.serving_forms import InputRows

        return (InputRows(tensors[rows.KEY]),)


def _start_at(encoder: nn.Module, row: Tensor) -> None:
    """Let the encoder's last layer start near one `row` [H]: torch's own start makes rows far too short for the base."""
    from torch import nn

    *_, last = encoder.modules()
    assert isinstance(last, nn.Linear)
    last.weight.mul_(_START_SCALE)
    last.bias.copy_(row)


def _encoder(config: PTuningConfig, width: int, device: str = "cpu") -> nn.Module:
    """The reparameterisation network, rows [P, H] -> [P, H]."""
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            hidden = config.hidden
            self.lstm: nn.LSTM | None = None
            if config.encoder == "lstm":
                self.lstm = nn.LSTM(width, hidden // 2, config.layers, bidirectional=True, batch_first=True)
                self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width))
            else:
                self.head = nn.Sequential(
                    nn.Linear(width, hidden),
                    nn.ReLU(),
                    nn.Linear(hidden, hidden),
                    nn.ReLU(),
                    nn.Linear(hidden, width),
                )

        def forward(self, embedding: Tensor) -> Tensor:
            return self.head(embedding if self.lstm is None else self.lstm(embedding[None])[0][0])

    return Encoder().to(device)
