"""What the trainer's commands share: options made of the fields of TrainConfig and RunConfig, early checks, the bars."""

import functools
import json
import math
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click
from rich.console import Console

from graft.hub.adapters.methods import METHODS
from graft.hub.base.manifest import recorded_spec
from graft.hub.chat.words import MAX_TEMPLATE_BYTES
from graft.hub.errors import GraftError
from graft.hub.evaluation.task_data import load_examples
from graft.hub.evaluation.tokenization import spaces_at_the_join
from graft.trainer.plan.config import QUANTIZATIONS, SCHEDULES, RunConfig, TrainConfig
from graft.trainer.plan.plan import BASELINES, Plan, check_against_spec, metric_of

if TYPE_CHECKING:
    from graft.hub.base.model import Base
    from graft.trainer.training.progress import Bars

console = Console(stderr=True)
Command = Callable[..., None]
BUDGET = ("epochs", "steps", "batch_size", "max_length")  # of TrainConfig: what a training's cost depends on

_HELP = {
    "epochs": "Passes over the data.",
    "steps": "Optimiser steps, instead of --epochs.",
    "batch_size": "Sequences an optimiser step.",
    "learning_rate": "Peak rate (default: the method's own).",
    "warmup": "Fraction of the steps with a rising rate.",
    "schedule": "Of the rate after the warm-up.",
    "weight_decay": "AdamW's, decoupled.",
    "max_grad_norm": "Longer gradients are cut to it.",
    "max_length": "Tokens of a text; prompts lose their beginning.",
    "seed": "Of initialisation, order and dropout.",
    "metric": "Of the evaluation (default: accuracy where the data lists labels, else chrf).",
    "eval_every": "Steps between evaluations; the best parameters are kept.",
    "eval_limit": "Evaluate on the first so many examples only.",
    "patience": "Evaluations without a better score before stopping.",
    "dtype": "Of the base (default: as measured here; docs/performance.md).",
    "device": "cpu, cuda, cuda:1, ... (default: a GPU where there is one).",
    "quantize": "Keep the frozen base's linears in so few bits (needs bitsandbytes).",
    "rows_per_pass": "Tokens in memory at once.",
    "checkpoint_layers": "Recompute layers in the backward pass: less memory, a third more time.",
    "checkpoint_every": "Steps between resumable checkpoints (always on Ctrl-C).",
}
_CHOICES = {"schedule": SCHEDULES, "dtype": ("float32", "bfloat16"), "quantize": QUANTIZATIONS}


def config_options(
    parameter: str, kind: type[TrainConfig] | type[RunConfig], *, only: Collection[str] | None = None
) -> Callable[[Command], Command]:
    """Options for the fields of `kind` (those in `only`); the command gets the object they make as `parameter`."""
    chosen = [field for field in fields(kind) if only is None or field.name in only]
    hints = get_type_hints(kind)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_config(**values: Any) -> None:
            made = kind(**{field.name: values.pop(field.name) for field in chosen})
            command(**values, **{parameter: made})

        for field in reversed(chosen):
            _option(field, hints[field.name])(with_config)
        return with_config

    return decorate


def _option(field: Field[object], hint: object) -> Callable[[Command], Command]:
    name, text = f"--{field.name.replace('_', '-')}", _HELP[field.name]
    if hint is bool:
        return click.option(name, is_flag=True, default=field.default, help=text)
    (kind, *_) = get_args(hint) or (hint,)  # `int | None`: int
    if field.name in _CHOICES:
        kind = click.Choice(_CHOICES[field.name])
    return click.option(name, type=kind, default=field.default, show_default=field.default is not None, help=text)


def names_of(flag: str, text: str) -> list[str]:
    """The names in a list separated by commas. Raises click.UsageError for none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise click.UsageError(f"{flag} names no method. Known: {', '.join([*METHODS, *BASELINES])}.")
    return names


def check_early(plan: Plan) -> None:
    """Refuse bad options and bad data before torch and the weights are loaded."""
    spec = recorded_spec(plan.base)
    if spec is not None:
        check_against_spec(plan, spec)
    read = functools.cache(load_examples)  # a plan's adapters share files
    for adapter in plan.adapters:
        if note := spaces_at_the_join(read(adapter.data)):
            console.print(f"note: {adapter.data}: {note}", markup=False, highlight=False)
        metric_of(adapter, read(adapter.eval_data) if adapter.eval_data else [])


chat_template_option = click.option(
    "--chat-template",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Messages become prompts by it, and the adapters bring it along (default: the base's own).",
)


def base_loader(
    base: str, run: RunConfig, begun_in: str | None = None, chat_template: Path | None = None
) -> "Callable[[], Base]":
    """Loads the base afresh each time: baselines change theirs. `begun_in`: the dtype of what is to be continued.
    `chat_template`: a file, instead of the base's own. Raises GraftError where it can't be read."""
    template = read_template(chat_template)
    say(f"Loading {base} ...")  # torch takes its seconds, too

    from graft.hub.base.dtype_choice import chosen_dtype
    from graft.hub.base.model import load_base
    from graft.trainer.process.allocator import keep_freed_memory
    from graft.trainer.training.dtype_speed import TRAINING

    keep_freed_memory()
    dtype = run.dtype or begun_in or (None if run.quantize else chosen_dtype(base, run.device, TRAINING, say))

    def load() -> "Base":
        loaded = load_base(base, dtype=dtype, device=run.device, quantize=run.quantize)
        if template is not None and loaded.tokenizer is not None:
            loaded.tokenizer.chat_template = template
        return loaded

    return load


def read_template(path: Path | None) -> str | None:
    """None for none. Raises GraftError for a file that can't be read, or that is no template by its size."""
    if path is None:
        return None
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GraftError(f"The chat template {path} can't be read: {error}.") from None
    if not text or len(text.encode()) > MAX_TEMPLATE_BYTES:
        raise GraftError(
            f"The chat template {path} has {len(text)} characters: 1 to {MAX_TEMPLATE_BYTES} bytes it may be."
        )
    return text


def bars() -> "Bars":
    """Progress on the terminal, as a context that is a watcher."""
    from graft.trainer.training.progress import Bars

    return Bars(console)


def say(message: str) -> None:
    """Tell whoever watches, beside the bars."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def print_numbers(numbers: object) -> None:
    """One JSON document; a number that is not finite is null, for JSON knows no NaN."""
    click.echo(json.dumps(_replace_nonfinite(numbers), allow_nan=False))


def _replace_nonfinite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_of(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)
