"""`graft train`, `graft compare`, `graft estimate`: they parse and print, the other files do the work."""

import json
import math
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from graft.hub.commands.shared import hub_option, local_user, opened, registry_option
from graft.hub.errors import GraftError
from graft.trainer.config import SCHEDULES, RunConfig, TrainConfig
from graft.trainer.plan import BASELINES, AdapterPlan, Plan, check_against_spec, check_plan, read_plan

console = Console(stderr=True)


_SHARED = (
    click.option("--epochs", type=float, default=3.0, show_default=True, help="Passes over the data."),
    click.option("--steps", type=int, help="Optimiser steps, instead of --epochs."),
    click.option("--batch-size", type=int, default=8, show_default=True, help="Sequences an optimiser step."),
    click.option("--learning-rate", type=float, help="Peak rate (default: the method's own)."),
    click.option("--warmup", type=float, default=0.06, show_default=True, help="Fraction of the steps."),
    click.option("--schedule", type=click.Choice(SCHEDULES), default="cosine", show_default=True),
    click.option("--weight-decay", type=float, default=0.0, show_default=True),
    click.option("--max-grad-norm", type=float, default=1.0, show_default=True),
    click.option("--max-length", type=int, help="Tokens of a text; prompts lose their beginning."),
    click.option("--seed", type=int, default=0, show_default=True),
    click.option("--metric", help="Of the evaluation (default: accuracy where the data lists labels, else chrf)."),
    click.option("--eval-every", type=int, help="Steps between evaluations; the best parameters are kept."),
    click.option("--eval-limit", type=int, help="Evaluate on the first so many examples only."),
    click.option("--patience", type=int, help="Evaluations without a better score before stopping."),
    click.option(
        "--dtype", type=click.Choice(("float32", "bfloat16")), help="Of the base (default: what is fast here)."
    ),
    click.option("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)."),
    click.option("--rows-per-pass", type=int, default=2048, show_default=True, help="Tokens in memory at once."),
    click.option("--checkpoint-layers", is_flag=True, help="Recompute layers in the backward pass: less memory."),
    click.option("--checkpoint-every", type=int, help="Steps between resumable checkpoints (always on Ctrl-C)."),
)


def recipe_options(command):
    """The flags of TrainConfig and RunConfig, the same for every command that trains."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


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
@recipe_options
@click.option("--publish", default="", metavar="NS/NAME", help="Publish the artifact at the end.")
@registry_option
@hub_option
@click.option("--resume", is_flag=True, help="Continue from the checkpoint beside the output folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def train(
    plan_file: Path | None, resume: bool, registry_path: Path, hub_url: str | None, as_json: bool, **flags
) -> None:
    """Train adapters on a frozen base and write an artifact folder each."""
    plan = _plan_of_file(plan_file, flags) if plan_file else _plan_of_flags(flags)
    check_plan(plan)
    _check_early(plan)
    registry = opened(registry_path, hub_url, create=True) if any(a.publish for a in plan.adapters) else None
    outcomes = _run(plan, resume, quiet=as_json)
    if registry:
        _publish(plan, outcomes, registry)
    if as_json:
        click.echo(json.dumps([{**asdict(outcome), "folder": _text(outcome.folder)} for outcome in outcomes]))
    else:
        _print(outcomes)
    if failed := [outcome for outcome in outcomes if outcome.folder is None]:
        raise GraftError("; ".join(f"{outcome.name}: {outcome.stopped}" for outcome in failed) + ".")


def _publish(plan: Plan, outcomes: list, registry) -> None:
    wanted = {adapter.out: adapter.publish for adapter in plan.adapters if adapter.publish}
    for outcome in outcomes:
        if outcome.folder in wanted:
            revision = registry.publish(outcome.folder, wanted[outcome.folder], user=local_user())
            console.print(f"Published {wanted[outcome.folder]}@{revision.id}")


def _plan_of_file(path: Path, flags: dict) -> Plan:
    given = click.get_current_context().get_parameter_source
    for name in flags:
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} and --plan exclude each other: write it into the plan.")
    return read_plan(path)


def _plan_of_flags(flags: dict) -> Plan:
    for name in ("base", "method", "data", "out"):
        if not flags[name]:
            raise click.UsageError(f"--{name} is needed (or --plan).")
    recipe, run = _configs(flags)
    adapter = AdapterPlan(
        method=flags["method"],
        data=flags["data"],
        out=flags["out"],
        name=flags["name"],
        publish=flags["publish"],
        task=flags["task"],
        eval_data=flags["eval_data"],
        options=parse_settings(flags["options"]),
        recipe=recipe,
    )
    return Plan(flags["base"], (adapter,), run)


def _configs(flags: dict) -> tuple[TrainConfig, RunConfig]:
    recipe = TrainConfig(**{f.name: flags[f.name] for f in fields(TrainConfig)})
    return recipe, RunConfig(**{f.name: flags[f.name] for f in fields(RunConfig)})


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
    from graft.hub.examples import load_examples
    from graft.hub.spec import recorded_spec

    spec = recorded_spec(plan.base)
    if spec is not None:
        check_against_spec(plan, spec)
    for path in {path for adapter in plan.adapters for path in (adapter.data, adapter.eval_data) if path}:
        load_examples(path)


def _run(plan: Plan, resume: bool, quiet: bool) -> list:
    """All PEFT adapters in one batched run, then each baseline on a base of its own, which it changes."""
    from graft.trainer.baselines import train_baseline
    from graft.trainer.run import train as train_adapters

    fresh_base = _loader(plan.base, plan.run)
    base = fresh_base()
    check_against_spec(plan, base.spec)
    adapters = [adapter for adapter in plan.adapters if adapter.method not in BASELINES]
    baselines = [adapter for adapter in plan.adapters if adapter.method in BASELINES]
    with nullcontext() if quiet else _bars() as bars:
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


@click.command()
@click.option("--base", required=True, help="Folder of the frozen base, or a hub id.")
@click.option("--task", default="untasked", help="The task's slug.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Training data, JSONL.")
@click.option("--eval-data", required=True, type=click.Path(path_type=Path), help="Held-out data, which decides.")
@click.option("--methods", default="lora,series,parallel,prompt,prefix,ptuning", show_default=True)
@click.option("--out", default="comparison", show_default=True, type=click.Path(path_type=Path))
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compare(base: str, task: str, data: Path, eval_data: Path, methods: str, out: Path, as_json: bool, **flags) -> None:
    """Train METHODS under one budget and write the literature's table: Markdown, JSON and a plot."""
    recipe, run = _configs(flags)
    template = AdapterPlan(method="", data=data, out=out, task=task, eval_data=eval_data, recipe=recipe)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    plans = tuple(replace(template, method=name, out=out / name) for name in names)
    check_plan(Plan(base, plans, run))
    _check_early(Plan(base, plans, run))
    from graft.trainer import compare as comparing

    with nullcontext() if as_json else _bars() as bars:
        found = comparing.compare(_loader(base, run), names, template, run, watchers=[bars] if bars else [])
    table = comparing.as_markdown(found)
    (out / "compare.md").write_text(table)
    (out / "compare.json").write_text(comparing.as_json(found))
    drawn = comparing.plot(found, out / "compare.png")
    click.echo(comparing.as_json(found) if as_json else table)
    written = ["compare.md", "compare.json", *(["compare.png"] if drawn else [])]
    console.print(f"Written to {out}: {', '.join(written)}; an artifact a method beside them.")


@click.command()
@click.option("--base", required=True, help="Folder of the frozen base, or a hub id.")
@click.option("--method", "methods", required=True, help="One or several, separated by commas.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="An option of the method.")
@click.option("--data", type=click.Path(path_type=Path), help="Training data, whose lengths are taken.")
@click.option("--length", type=int, default=128, show_default=True, help="Tokens of a sequence, without --data.")
@click.option("--learned", type=int, default=8, show_default=True, help="Of which completion, without --data.")
@recipe_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def estimate(base: str, methods: str, options, data: Path | None, length: int, learned: int, as_json: bool, **flags):
    """Tell a training's memory and time before they are spent, from a few small steps of it."""
    recipe, run = _configs(flags)
    settings = parse_settings(options)
    plans = tuple(
        AdapterPlan(method=name.strip(), data=data or Path(), out=Path(name.strip()), options=settings, recipe=recipe)
        for name in methods.split(",")
    )
    check_plan(Plan(base, plans, run))
    from graft.trainer import estimate as estimating

    load = _loader(base, run)
    loaded = load()
    check_against_spec(Plan(base, plans, run), loaded.spec)
    limit = min(recipe.max_length or loaded.spec.max_positions, loaded.spec.max_positions)
    examples = recipe.batch_size
    if data:
        length, learned, examples = estimating.lengths_of(data, loaded, limit, recipe.batch_size)
    if not 0 < learned < length <= limit:
        raise GraftError(f"A sequence of {length} tokens, {learned} of them learned, does not fit into {limit}.")
    steps = recipe.steps or math.ceil(recipe.epochs * math.ceil(examples / recipe.batch_size))
    sizes = {"length": length, "learned": learned, "steps": steps}
    costs = []
    for plan in plans:
        costs.append(estimating.estimate(loaded, plan, run, **sizes))
        if plan.method in BASELINES:
            loaded = load()  # the baseline has changed its own
    full = estimating.full_fine_tuning(loaded.spec.parameters)
    if as_json:
        click.echo(json.dumps({"costs": [asdict(cost) for cost in costs], "full_fine_tuning": asdict(full), **sizes}))
    else:
        _print_costs(costs, full, sizes)


def _print_costs(costs, full, sizes) -> None:
    from graft.trainer.compare import bytes_text

    title = f"{sizes['steps']} steps, sequences of {sizes['length']} tokens"
    table = Table(title=title, title_justify="left")
    keys = ("base", "master", "gradient", "optimizer", "activation", "peak")
    for column in ("method", "trained", "of the base", *keys, "s/step", "time"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for cost in costs:
        sizes_shown = [bytes_text(getattr(cost, f"{key}_bytes")) for key in keys]
        shown = [cost.method, f"{cost.trained_parameters:,}", f"{cost.share:.3%}", *sizes_shown]
        table.add_row(*shown, f"{cost.seconds_per_step:.2f}", f"{cost.seconds:,.0f} s")
    Console().print(table)
    Console().print(
        f"Full fine-tuning in float32 with AdamW would need {bytes_text(full.weights_bytes)} of weights, "
        f"{bytes_text(full.gradient_bytes)} of gradients and {bytes_text(full.moments_bytes)} of moments: "
        f"{bytes_text(full.total_bytes)} before any activation."
    )


def _loader(base: str, run: RunConfig):
    from graft.hub.base import load_base

    return lambda: load_base(base, dtype=run.dtype, device=run.device)


def _bars():
    from graft.trainer.progress import Bars

    return Bars(console)
