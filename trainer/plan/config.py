"""What a training run is told: frozen, checked at construction, units in the names.

`TrainConfig` is one adapter's recipe, `RunConfig` what the adapters of a run share. Torch-free.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from graft.hub.errors import GraftError

SCHEDULES = ("cosine", "linear", "constant")
_WHOLE = {
    "steps", "batch_size", "max_length", "seed", "eval_every", "eval_limit", "patience", "rows_per_pass",
    "checkpoint_every",
}  # fmt: skip
QUANTIZATIONS = ("4bit", "8bit")  # hub/base/quantization.py


@dataclass(frozen=True)
class TrainConfig:
    """One adapter's recipe. An optimiser step sees `batch_size` sequences of this adapter."""

    epochs: float = 3.0  # passes over the training data; `steps` overrides it
    steps: int | None = None  # optimiser steps
    batch_size: int = 8  # sequences an optimiser step
    learning_rate: float | None = None  # peak; None: the method's own
    warmup: float = 0.06  # fraction of the steps with a rising rate
    schedule: str = "cosine"  # after the warm-up: cosine or linear to zero, or constant
    weight_decay: float = 0.0  # AdamW's, decoupled
    max_grad_norm: float = 1.0  # of this adapter's gradient alone
    max_length: int | None = None  # tokens of prompt and completion; None: what the base can take
    seed: int = 0  # of initialisation, order and dropout
    metric: str | None = None  # None: accuracy where the data lists labels, else chrf
    eval_every: int | None = None  # optimiser steps between evaluations; None: only at the end
    eval_limit: int | None = None  # examples; None: all of the evaluation data
    patience: int | None = None  # evaluations without a better score before stopping; None: never

    def __post_init__(self) -> None:
        for key in ("epochs", "steps", "batch_size", "learning_rate", "max_grad_norm", "max_length", "eval_every"):
            _require(key, getattr(self, key), lambda value: value > 0, "greater than 0")
        for key in ("eval_limit", "patience"):
            _require(key, getattr(self, key), lambda value: value >= 1, "at least 1")
        _require("seed", self.seed, lambda value: 0 <= value < 1 << 63, "at least 0 and less than 2^63")
        _require("weight_decay", self.weight_decay, lambda value: value >= 0, "at least 0")
        _require("warmup", self.warmup, lambda value: 0 <= value < 1, "at least 0 and less than 1")
        if self.schedule not in SCHEDULES:
            raise GraftError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}.")
        if self.patience is not None and self.eval_every is None:
            raise GraftError("patience counts evaluations, so it needs eval_every (and evaluation data).")

    def steps_over(self, examples: int) -> int:
        """Optimiser steps of a whole training on that many."""
        return self.steps or math.ceil(self.epochs * math.ceil(examples / self.batch_size))

    def text_limit(self, room: int) -> int:
        """Tokens of prompt and completion, where the base has `room` positions for them."""
        return min(self.max_length or room, room)


@dataclass(frozen=True)
class RunConfig:
    """What the adapters of one run share: the base is there once, and so is the memory of a pass."""

    dtype: str | None = None  # of the base and the arithmetic; None: bfloat16 where it is fast
    device: str | None = None
    quantize: str | None = None  # 4bit or 8bit: how the frozen base's linears are kept; None: in dtype
    rows_per_pass: int = 2048  # tokens of one forward and backward; a larger step is done in several passes
    checkpoint_layers: bool = False  # recompute each layer in the backward pass: less memory, a third more time
    checkpoint_every: int | None = None  # optimiser steps between resumable checkpoints; None: only when interrupted

    def __post_init__(self) -> None:
        for key in ("rows_per_pass", "checkpoint_every"):
            _require(key, getattr(self, key), lambda value: value >= 1, "at least 1")
        if not isinstance(self.checkpoint_layers, bool):
            raise GraftError(f"checkpoint_layers must be true or false, not {self.checkpoint_layers!r}.")
        if self.quantize not in (None, *QUANTIZATIONS):
            raise GraftError(f"quantize must be one of {', '.join(QUANTIZATIONS)}, not {self.quantize!r}.")


def _require(key: str, value: object, holds: Callable[[float], bool], words: str) -> None:
    if value is None:
        return
    kinds = (int,) if key in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or not holds(value):
        kind = "whole number" if isinstance(value, float) and key in _WHOLE else "number"
        raise GraftError(f"{key} must be a {kind} {words}, not {value!r}.")
