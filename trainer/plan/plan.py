"""What is to be trained: one `AdapterPlan` an adapter, from a command line or a TOML file. Torch-free.

A plan file holds the run's keys (base, dtype, device, rows_per_pass, ...), a table [defaults], and one table
[[adapter]] each with name, method, task, data, eval_data, out, publish, set = {option = value}, generation = {default = value}, and any
key of TrainConfig.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from graft.hub.adapters.methods import METHODS, get_method
from graft.hub.base.manifest import BaseSpec
from graft.hub.base.named_bases import base_source
from graft.hub.chat.words import GenerationDefaults, chosen_defaults
from graft.hub.errors import DataError, GraftError
from graft.hub.evaluation.metrics import Metric, default_metric, get_metric
from graft.hub.evaluation.task_data import Example
from graft.hub.machine.output_folder import require_free, require_writable
from graft.hub.registry.naming import check_repo_name, check_slug
from graft.trainer.plan.config import RunConfig, TrainConfig

BASELINES = (
    "full",
    "last-layers",
)  # trainer/training/base_weights.py: they change the base itself and make no artifact
_LAST_LAYERS = 2
_RECIPE = {f.name for f in fields(TrainConfig)}
_RUN = {f.name for f in fields(RunConfig)}
Made = TypeVar("Made", TrainConfig, RunConfig)


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter to be trained."""

    method: str
    data: Path
    out: Path
    name: str = ""  # "": the output folder's
    task: str = "untasked"
    eval_data: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)  # of the method, as `--set key=value` gives them
    publish: str = ""  # NS/NAME in the registry or hub, "": not published
    recipe: TrainConfig = field(default_factory=TrainConfig)
    generation: GenerationDefaults = field(default_factory=GenerationDefaults)  # that the artifact brings along

    @property
    def label(self) -> str:
        return self.name or self.out.resolve().name


@dataclass(frozen=True)
class Plan:
    """A whole run: one base, N adapters."""

    base: str
    adapters: tuple[AdapterPlan, ...]
    run: RunConfig = field(default_factory=RunConfig)


def read_plan(path: Path) -> Plan:
    """A plan file; its relative paths start at the working directory. Raises GraftError naming the file and the key."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise GraftError(f"The plan {path} can't be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GraftError(f"{path} is not valid TOML: {error}.") from None
    defaults, tables = raw.pop("defaults", {}), raw.pop("adapter", [])
    base = raw.pop("base", None)
    _refuse_unknown(path, "the plan", raw, _RUN | {"base", "defaults", "adapter"})
    if not isinstance(base, str):
        raise GraftError(f'{path} names no base: write base = "FOLDER" at its top.')
    if not isinstance(defaults, dict) or (isinstance(tables, list) and not all(isinstance(t, dict) for t in tables)):
        raise GraftError(f"{path}: [defaults] and each [[adapter]] are tables of key = value.")
    if not isinstance(tables, list) or not tables:
        raise GraftError(f"{path} plans no adapter: write one table [[adapter]] each.")
    adapters = tuple(_adapter(path, {**defaults, **table}) for table in tables)
    return Plan(base_source(base), adapters, _make(path, RunConfig, raw))


def claim_outs(plan: Plan, resume: bool, overwrite: bool) -> None:
    """Refuse output folders that can't be written, and those whose content nobody said to continue or to replace.

    Raises GraftError.
    """
    for adapter in plan.adapters:
        training = training_folder(adapter.out)
        if not (resume or overwrite):
            both = "--resume goes on with what is not finished, --overwrite replaces it"
            require_free(adapter.out, both)
            if training.exists():
                raise GraftError(
                    f"{training} holds an interrupted training: --resume continues it, --overwrite starts again."
                )
        require_writable(adapter.out)
        require_writable(training)


def claim_comparison(out: Path, *, resume: bool) -> None:
    """What `graft compare` asks of its folders before it works for them. Raises GraftError."""
    begun = training_folder(out)
    if not resume or not begun.exists():
        if begun.exists():
            raise GraftError(
                f"{begun} holds an interrupted comparison: --resume goes on with it; or remove it and {out}."
            )
        require_free(out)
    require_writable(out)
    require_writable(begun)


def training_folder(out: Path) -> Path:
    """Where the checkpoint of an adapter lies that will be written to `out`."""
    out = Path(os.path.abspath(out))  # "." has no name of its own
    return out.with_name(f"{out.name}.training")


def check_plan(plan: Plan) -> None:
    """What can be known before anything is loaded. Raises GraftError."""
    outs = [adapter.out.resolve() for adapter in plan.adapters]
    if twice := [out for out in outs if outs.count(out) > 1]:
        raise GraftError(f"Two adapters of the plan would be written to {twice[0]}.")
    for adapter in plan.adapters:
        if adapter.method not in METHODS and adapter.method not in BASELINES:
            raise GraftError(f"Unknown method {adapter.method!r}. Known: {', '.join([*METHODS, *BASELINES])}.")
        _check_out(adapter, plan.base)
        check_slug(adapter.task)
        if adapter.publish:
            check_repo_name(adapter.publish)
        if adapter.publish and adapter.method in BASELINES:
            raise GraftError(
                f"{adapter.label}: {adapter.method} leaves a base, not an adapter that could be published."
            )
        if adapter.generation.given() and adapter.method in BASELINES:
            raise GraftError(f"{adapter.label}: {adapter.method} leaves a base; generation defaults are an adapter's.")
        if plan.run.quantize and adapter.method in BASELINES:
            raise GraftError(
                f"{adapter.label}: {adapter.method} trains the base's own weights, which can't be quantised."
            )
        if adapter.recipe.metric is not None:
            get_metric(adapter.recipe.metric)
        for key in ("eval_every", "metric", "eval_limit"):
            if getattr(adapter.recipe, key) is not None and adapter.eval_data is None:
                raise GraftError(f"{adapter.label}: {key} needs evaluation data (--eval-data).")


def _check_out(adapter: AdapterPlan, base: str) -> None:
    """Refuse an output folder that can't be written or that is somebody else's. Raises GraftError."""
    out = adapter.out.resolve()
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    if not there.is_dir():
        raise GraftError(f"{there} is a file; an adapter is written to a folder.")
    if not out.name or not os.access(there, os.W_OK | os.X_OK):
        raise GraftError(f"{adapter.label}: nothing can be written to {adapter.out}. Choose another --out.")
    if base and out == Path(base).resolve():
        raise GraftError(f"{adapter.label}: {adapter.out} is the base's own folder. Choose another --out.")
    other = "adapter_config.json" if adapter.method in BASELINES else "config.json"
    if (out / other).exists():  # transformers would take the one for the other
        kinds = ("an adapter", "a base") if adapter.method in BASELINES else ("a base", "an adapter")
        raise GraftError(
            f"{adapter.label}: {adapter.out} holds {kinds[0]}, which {kinds[1]} beside it would break. "
            f"Choose another --out."
        )


def check_against_spec(plan: Plan, spec: BaseSpec) -> None:
    """Options, targets and sizes against the base's manifest, before its weights are loaded. Raises GraftError."""
    for adapter in plan.adapters:
        limit = adapter.recipe.max_length
        if limit is not None and limit > spec.max_positions:
            raise GraftError(
                f"{adapter.label}: max_length={limit} is more than this base's {spec.max_positions} positions."
            )
        if adapter.method in BASELINES:
            baseline_layers(adapter.method, adapter.options, spec)
        else:
            method = get_method(adapter.method)
            method.require_sensible(method.from_options(adapter.options, spec), spec)


def room_of(adapter: AdapterPlan, spec: BaseSpec) -> int:
    """Positions of the base that are left for a text."""
    if adapter.method in BASELINES:
        return spec.max_positions
    method = get_method(adapter.method)
    return spec.max_positions - method.virtual_tokens(method.from_options(adapter.options, spec))


def baseline_layers(method: str, options: Mapping[str, str], spec: BaseSpec) -> int | None:
    """How many of the last layers a baseline trains; None: every weight. Raises GraftError for other options."""
    known = {"full": (), "last-layers": ("layers",)}[method]
    if unknown := sorted(options.keys() - set(known)):
        raise GraftError(f"{method} has no option {unknown[0]!r}. Its options: {', '.join(known) or 'none'}.")
    if method == "full":
        return None
    text = options.get("layers", str(min(_LAST_LAYERS, spec.num_layers)))
    if not text.isdecimal() or not 1 <= int(text) <= spec.num_layers:
        raise GraftError(f"last-layers: layers must lie in 1..{spec.num_layers}, not {text!r}.")
    return int(text)


def metric_of(adapter: AdapterPlan, held_out: list[Example]) -> Metric | None:
    """What the evaluation measures; None without examples. Raises DataError where they lack the labels it needs."""
    if not held_out:
        return None
    metric = get_metric(adapter.recipe.metric) if adapter.recipe.metric else default_metric(held_out)
    if metric.answers == "labels" and not all(example.labels for example in held_out):
        raise DataError(f'{adapter.eval_data}: the metric {metric.name} needs "labels" on every line.')
    return metric


def _adapter(path: Path, table: Mapping[str, Any]) -> AdapterPlan:
    own = {"name", "method", "task", "data", "eval_data", "out", "set", "generation", "publish"}
    where = f"the adapter {table.get('name') or table.get('out') or '?'}"
    _refuse_unknown(path, where, table, own | _RECIPE)
    for key in sorted((own - {"set", "generation"}) & table.keys()):
        if not isinstance(table[key], str):
            raise GraftError(f"{path}: {where}: {key} must be text, not {table[key]!r}.")
    missing = [key for key in ("method", "data", "out") if not isinstance(table.get(key), str)]
    if missing:
        raise GraftError(f"{path}: {where} lacks {missing[0]}.")
    options = table.get("set", {})
    if not isinstance(options, dict):
        raise GraftError(f"{path}: {where}: set must be a table, such as set = {{ r = 8 }}.")
    generation = table.get("generation", {})
    if not isinstance(generation, dict):
        raise GraftError(f"{path}: {where}: generation must be a table, such as generation = {{ temperature = 0.2 }}.")
    try:
        defaults = chosen_defaults(generation)
    except DataError as error:
        raise GraftError(f"{path}: {where}: {error}") from None
    return AdapterPlan(
        method=table["method"],
        data=Path(table["data"]),
        out=Path(table["out"]),
        name=table.get("name", ""),
        task=table.get("task", "untasked"),
        eval_data=Path(table["eval_data"]) if "eval_data" in table else None,
        publish=table.get("publish", ""),
        options={key: option_text(value) for key, value in options.items()},
        recipe=_make(path, TrainConfig, {key: value for key, value in table.items() if key in _RECIPE}),
        generation=defaults,
    )


def option_text(value: object) -> str:
    """A TOML value as `--set` would spell it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict):
        return ",".join(f"{key}:{item}" for key, item in value.items())
    return str(value)


def _make(path: Path, kind: type[Made], values: Mapping[str, Any]) -> Made:
    try:
        return kind(**values)
    except GraftError as error:
        raise GraftError(f"{path}: {error}") from None


def _refuse_unknown(path: Path, where: str, table: Mapping[str, object], known: set[str]) -> None:
    if unknown := sorted(table.keys() - known):
        raise GraftError(f"{path}: {where} has an unknown key {unknown[0]!r}. Known: {', '.join(sorted(known))}.")
