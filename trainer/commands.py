"""`graft train`: one adapter from flags, or many from a plan. Parses and prints; trainer/run.py does the work."""

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from graft.hub.errors import GraftError
from graft.trainer.config import SCHEDULES, RunConfig, TrainConfig
from graft.trainer.plan import BASELINES, AdapterPlan, Plan, check_against_spec, check_plan, read_plan

console = Console(stderr=True)
_RECIPE_FLAGS = {f.name for f in fields(TrainConfig)}


@click.command()
@click.option("--base", help="Folder of the frozen base, or a hub id.")
@click.option("--method", help="lora series parallel prompt prefix ptuning bitfit ia3, or full last-layers.")
@click.option("--task", default="untasked", help="The task's slug, for the model card.")
@click.option("--data", type=click.Path(path_type=Path), help="Training data, JSONL.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="Held-out data: scored at the end, never trained.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the artifact.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="An option of the method, e.g. r=16.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="A TOML file with many adapters.")
@click.option("--name", default="", help="The adapter's name on its card (default: the folder's).")
@click.option("--epochs", type=float, default=3.0, show_default=True, help="Passes over the data.")
@click.option("--steps", type=int, help="Optimiser steps, instead of --epochs.")
@click.option("--batch-size", type=int, default=8, show_default=True, help="Sequences an optimiser step.")
@click.option("--learning-rate", type=float, help="Peak rate (default: the method's own).")
@click.option("--warmup", type=float, default=0.06, show_default=True, help="Fraction of the steps.")
@click.option("--schedule", type=click.Choice(SCHEDULES), default="cosine", show_default=True)
@click.option("--weight-decay", type=float, default=0.0, show_default=True)
@click.option("--max-grad-norm", type=float, default=1.0, show_default=True)
@click.option("--max-length", type=int, help="Tokens of a text; prompts lose their beginning.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--metric", help="Of the evaluation (default: accuracy where the data lists labels, else chrf).")
@click.option("--eval-every", type=int, help="Steps between evaluations; the best parameters are kept.")
@click.option("--eval-limit", type=int, help="Evaluate on the first so many examples only.")
@click.option("--patience", type=int, help="Evaluations without a better score before stopping.")
@click.option("--dtype", type=click.Choice(("float32", "bfloat16")), help="Of the base (default: what is fast here).")
@click.option("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one).")
@click.option("--rows-per-pass", type=int, default=4096, show_default=True, help="Tokens in memory at once.")
@click.option("--checkpoint-layers", is_flag=True, help="Recompute layers in the backward pass: less memory.")
@click.option("--checkpoint-every", type=int, help="Steps between resumable checkpoints (always on Ctrl-C).")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint beside the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def train(plan_file: Path | None, resume: bool, as_json: bool, **flags) -> None:
    """Train adapters on a frozen base and write an artifact folder each."""
    plan = _plan_of_file(plan_file, flags) if plan_file else _plan_of_flags(flags)
    check_plan(plan)
    _check_early(plan)
    outcomes = _run(plan, resume, quiet=as_json or not sys.stderr.isatty())
    if as_json:
        click.echo(json.dumps([{**asdict(outcome), "folder": _text(outcome.folder)} for outcome in outcomes]))
    else:
        _print(outcomes)
    if failed := [outcome for outcome in outcomes if outcome.folder is None]:
        raise GraftError("; ".join(f"{outcome.name}: {outcome.stopped}" for outcome in failed) + ".")


def _plan_of_file(path: Path, flags: dict) -> Plan:
    given = click.get_current_context().get_parameter_source
    for name in flags:
        if name not in ("base",) and given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} and --plan exclude each other: write it into the plan.")
    return read_plan(path)


def _plan_of_flags(flags: dict) -> Plan:
    for name in ("base", "method", "data", "out"):
        if not flags[name]:
            raise click.UsageError(f"--{name} is needed (or --plan).")
    recipe = TrainConfig(**{name: flags[name] for name in _RECIPE_FLAGS})
    run = RunConfig(**{f.name: flags[f.name] for f in fields(RunConfig)})
    adapter = AdapterPlan(
        method=flags["method"],
        data=flags["data"],
        out=flags["out"],
        name=flags["name"],
        task=flags["task"],
        eval_data=flags["eval_data"],
        options=parse_settings(flags["options"]),
        recipe=recipe,
    )
    return Plan(flags["base"], (adapter,), run)


def parse_settings(settings: tuple[str, ...]) -> dict[str, str]:
    """`--set key=value` flags as a table. Raises click.UsageError."""
    table = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--set takes KEY=VALUE, not {setting!r}.")
        table[key.strip()] = value.strip()
    return table


def _check_early(plan: Plan) -> None:
    """Refuse bad options and bad data before torch and the weights are loaded."""
    from graft.hub.base import recorded_spec
    from graft.hub.examples import load_examples

    spec = recorded_spec(plan.base)
    if spec is not None:
        check_against_spec(plan, spec)
    for path in {path for adapter in plan.adapters for path in (adapter.data, adapter.eval_data) if path}:
        load_examples(path)


def _run(plan: Plan, resume: bool, quiet: bool) -> list:
    """All PEFT adapters in one batched run, then each baseline on a base of its own, which it changes."""
    from graft.hub.base import load_base
    from graft.trainer.baselines import train_baseline
    from graft.trainer.progress import Bars
    from graft.trainer.run import train as train_adapters

    def fresh_base():
        return load_base(plan.base, dtype=plan.run.dtype, device=plan.run.device)

    base = fresh_base()
    check_against_spec(plan, base.spec)
    adapters = [adapter for adapter in plan.adapters if adapter.method not in BASELINES]
    baselines = [adapter for adapter in plan.adapters if adapter.method in BASELINES]
    with nullcontext() if quiet else Bars(console) as bars:
        watchers = [bars] if bars else []
        try:
            done = train_adapters(base, adapters, plan.run, watchers=watchers, resume=resume) if adapters else []
            for i, baseline in enumerate(baselines):
                own = base if i == 0 else fresh_base()  # the first takes the loaded one: nobody needs it any more
                done.append(train_baseline(own, baseline, plan.run, watchers=watchers, resume=resume))
        except KeyboardInterrupt:
            raise GraftError("Interrupted. Continue with the same command and --resume.") from None
    return done


def _print(outcomes) -> None:
    table = Table(title="Trained", title_justify="left")
    for column in ("adapter", "method", "parameters", "steps", "loss", "score", "seconds", "folder"):
        table.add_column(column, justify="right" if column in ("parameters", "steps", "loss", "seconds") else "left")
    for outcome in outcomes:
        score = outcome.score
        shown = f"{score.metric} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else ""
        table.add_row(
            outcome.name,
            outcome.method,
            f"{outcome.parameters:,}",
            str(outcome.steps),
            f"{outcome.loss:.4f}",
            shown,
            f"{outcome.seconds:.1f}",
            _text(outcome.folder) or outcome.stopped,
        )
    Console().print(table)


def _text(folder: Path | None) -> str | None:
    return None if folder is None else str(folder)
