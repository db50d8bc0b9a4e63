"""`graft train`: one adapter from flags, or many from a plan."""

import json
import math
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.hub.adapters.validation import PROVENANCE
from graft.hub.chat.words import GenerationDefaults, chosen_defaults
from graft.hub.errors import GraftError
from graft.hub.machine.ray_tasks import Spread
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import (
    hub_option,
    local_user,
    open_registry_to_publish,
    parse_settings,
    registry_option,
)
from graft.hub.terminal.ray_options import ray_options
from graft.hub.terminal.tables import print_table
from graft.trainer.commands.shared import (
    bars,
    base_loader,
    chat_template_option,
    check_early,
    config_options,
    console,
    print_numbers,
    say,
    text_of,
)
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan, Plan, check_against_spec, check_plan, claim_outs, read_plan

if TYPE_CHECKING:
    from graft.hub.registry.interface import AnyRegistry
    from graft.trainer.learners.job import TrainingOutcome
    from graft.trainer.training.loop import Watcher

_BESIDE_A_PLAN = (
    "plan_file",
    "chat_template",
    "registry_path",
    "hub_url",
    "resume",
    "overwrite",
    "tensorboard",
    "as_json",
    "on_ray",
    "ray_address",
    "ray_cpus",
)


@click.command()
@click.option("--base", type=BASE, help="A folder, an imported base's name or id, or a hub id.")
@click.option("--method", help="lora series parallel prompt prefix ptuning bitfit ia3, or full last-layers.")
@click.option("--task", default="untasked", help="The task's slug, for the model card.")
@click.option("--data", type=click.Path(path_type=Path), help="Training data: JSONL, CSV, Parquet, hf:NAME.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="Held-out data: scored at the end, never trained.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the artifact.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="An option of the method, e.g. r=16.")
@click.option(
    "--generation",
    multiple=True,
    metavar="KEY=VALUE",
    help="A generation default that the artifact brings along, e.g. temperature=0.2.",
)
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="A TOML file with many adapters.")
@click.option("--name", default="", help="The adapter's name on its card (default: the folder's).")
@config_options("recipe", TrainConfig)
@config_options("run", RunConfig)
@chat_template_option
@click.option("--publish", default="", metavar="NS/NAME", help="Publish the artifact at the end.")
@registry_option
@hub_option
@click.option("--resume", is_flag=True, help="Continue from the checkpoint beside the output folder.")
@click.option("--overwrite", is_flag=True, help="Replace what lies in the output folder, once it is trained.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder of TensorBoard logs, a run an adapter.")
@ray_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def train(
    base: str | None,
    method: str | None,
    task: str,
    data: Path | None,
    eval_data: Path | None,
    out: Path | None,
    options: tuple[str, ...],
    generation: tuple[str, ...],
    plan_file: Path | None,
    name: str,
    recipe: TrainConfig,
    run: RunConfig,
    chat_template: Path | None,
    publish: str,
    registry_path: Path,
    hub_url: str | None,
    resume: bool,
    overwrite: bool,
    tensorboard: Path | None,
    as_json: bool,
    spread: Spread | None,
) -> None:
    """Train adapters on a frozen base and write an artifact folder each.

    With --ray each adapter of a plan is trained alone, as a task of a Ray cluster.
    """
    if spread and not plan_file:
        raise click.UsageError("--ray spreads the adapters of a plan: add --plan.")
    if spread and tensorboard:
        raise click.UsageError("--tensorboard can't follow trainings elsewhere: leave it out, or --ray.")
    if plan_file:
        _refuse_flags_of_one()
        plan = read_plan(plan_file)
    else:
        _require(base=base, method=method, data=data, out=out)
        assert base and method and data and out
        settings = parse_settings(options)
        adapter = AdapterPlan(
            method, data, out, name, task, eval_data, settings, publish, recipe, _defaults(generation)
        )
        plan = Plan(base, (adapter,), run)
    check_plan(plan)
    claim_outs(plan, resume, overwrite)
    check_early(plan)
    wanted = [adapter.publish for adapter in plan.adapters if adapter.publish]
    registry = open_registry_to_publish(registry_path, hub_url, wanted) if wanted else None
    outcomes: list[TrainingOutcome] = []
    try:
        if spread:
            _run_spread(plan, chat_template, resume, overwrite, spread, outcomes)
        else:
            _run(plan, chat_template, resume, overwrite, tensorboard, as_json, outcomes)
    except BaseException as error:  # whatever it was: what is finished is finished
        for failure in _report(plan, outcomes, registry, as_json) if outcomes else ():
            say(failure)
        if isinstance(error, KeyboardInterrupt):
            raise GraftError(_interrupt_message(plan, outcomes)) from None
        raise
    if failures := _report(plan, outcomes, registry, as_json):
        raise GraftError("; ".join(failures) + ".")


def _defaults(flags: tuple[str, ...]) -> GenerationDefaults:
    """Raises click.UsageError for what is no KEY=VALUE, DataError for what is no generation default."""
    values: dict[str, object] = {}
    for name, text in parse_settings(flags, "--generation").items():
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text  # which no default is
    return chosen_defaults(values)


def _require(**flags: object) -> None:
    for name, value in flags.items():
        if not value:
            raise click.UsageError(f"--{name} is needed (or --plan).")


def _refuse_flags_of_one() -> None:
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
        if given and option.name not in _BESIDE_A_PLAN:
            raise click.UsageError(f"{option.opts[0]} and --plan exclude each other: write it into the plan.")


def _report(plan: Plan, outcomes: list["TrainingOutcome"], registry: "AnyRegistry | None", as_json: bool) -> list[str]:
    """Print what has been trained and publish what shall be; what became of neither, without a full stop."""
    if as_json:
        print_numbers([{**asdict(outcome), "folder": text_of(outcome.folder)} for outcome in outcomes])
    else:
        _print(outcomes)
    unsaved = [f"{outcome.name}: {outcome.stopped}" for outcome in outcomes if outcome.folder is None]
    return [failure.removesuffix(".") for failure in unsaved + _publish(plan, outcomes, registry)]


def _publish(plan: Plan, outcomes: list["TrainingOutcome"], registry: "AnyRegistry | None") -> list[str]:
    """Publish each that the plan says; why one could not be. registry: None where the plan says none."""
    if registry is None:
        return []
    wanted = {adapter.out: adapter.publish for adapter in plan.adapters if adapter.publish}
    failures = []
    for outcome in outcomes:
        if outcome.folder is None or outcome.folder not in wanted:
            continue
        name = wanted[outcome.folder]
        try:
            revision = registry.publish(outcome.folder, name, user=local_user())
            console.print(f"Published {name}@{revision.id}")
        except (GraftError, OSError) as error:  # the folder is there, and so are the others
            failures.append(f"{outcome.folder} is trained, but could not be published as {name}: {error}")
    return failures


def _run(
    plan: Plan,
    chat_template: Path | None,
    resume: bool,
    overwrite: bool,
    tensorboard: Path | None,
    quiet: bool,
    done: list["TrainingOutcome"],
) -> None:
    """All PEFT adapters in one batched run, then each baseline on a base of its own, which it changes.

    Fills `done`, so that what is finished is known though something fails later.
    """
    fresh_base = base_loader(plan.base, plan.run, _dtype_begun_in(plan) if resume else None, chat_template)

    from graft.trainer.training.base_weights import check_baseline, train_baseline
    from graft.trainer.training.run import train as train_adapters
    from graft.trainer.training.tensorboard import Board

    adapters = [adapter for adapter in plan.adapters if adapter.method not in BASELINES]
    baselines = [adapter for adapter in plan.adapters if adapter.method in BASELINES]
    with ExitStack() as stack:
        watchers: list[Watcher] = [stack.enter_context(Board(tensorboard))] if tensorboard else []
        base = fresh_base()
        check_against_spec(plan, base.spec)
        for baseline in baselines:  # their turn comes late, their mistakes are found now
            check_baseline(base, baseline)
        watchers += [] if quiet else [stack.enter_context(bars())]
        if adapters:
            done += train_adapters(
                base, adapters, plan.run, watchers=watchers, resume=resume, overwrite=overwrite, say=say
            )
        for i, baseline in enumerate(baselines):
            own = base if i == 0 else fresh_base()  # the first takes the loaded one: nobody needs it any more
            outcome = train_baseline(
                own, baseline, plan.run, watchers=watchers, resume=resume, overwrite=overwrite, say=say
            )
            done.append(outcome)


def _run_spread(
    plan: Plan,
    chat_template: Path | None,
    resume: bool,
    overwrite: bool,
    spread: Spread,
    done: list["TrainingOutcome"],
) -> None:
    """Each on a worker. Fills `done`, so that what is finished is known though something fails later."""
    say(f"Looking at {plan.base} ...")  # torch takes its seconds
    from graft.trainer.commands.train_spread import train_spread, wanted_by

    wanted = wanted_by(plan, chat_template, say, _dtype_begun_in(plan) if resume else None)
    train_spread(plan, wanted, spread, done, say, resume=resume, overwrite=overwrite)


def _dtype_begun_in(plan: Plan) -> str | None:
    """What the first adapter of which there is something was begun in."""
    return next(filter(None, (_begun_dtype(adapter.out) for adapter in plan.adapters)), None)


def _begun_dtype(out: Path) -> str | None:
    """The dtype of what a training to `out` left there: its checkpoint's, else the finished one's."""
    from graft.trainer.training.checkpoints import kept_facts

    if facts := kept_facts(out):
        return facts["told"]["dtype"]
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((out / PROVENANCE).read_text("utf-8"))["dtype"]
    return None


def _interrupt_message(plan: Plan, done: list["TrainingOutcome"]) -> str:
    """What a run that was ended leaves, as it lies on the disk."""
    from graft.trainer.training.checkpoints import kept_step

    finished = {outcome.folder for outcome in done}
    step = max((kept_step(adapter.out) for adapter in plan.adapters if adapter.out not in finished), default=0)
    if step:
        return f"Interrupted. Continue from step {step} with the same command and --resume."
    if finished:
        return "Interrupted. What is finished is kept; the same command with --resume trains the rest."
    return "Interrupted before anything was saved: the same command starts it again."


def _print(outcomes: list["TrainingOutcome"]) -> None:
    columns = ("adapter", "method", "parameters?:", "steps?:", "loss?:", "score", "seconds?:", "folder")
    print_table("Trained", columns, [_row(outcome) for outcome in outcomes])


def _row(outcome: "TrainingOutcome") -> tuple[object, ...]:
    score = outcome.score
    return (
        outcome.name,
        outcome.method,
        f"{outcome.parameters:,}",
        outcome.steps,
        f"{outcome.loss:.4f}" if math.isfinite(outcome.loss) else "",
        f"{score.metric} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else "",
        f"{outcome.seconds:.1f}",
        text_of(outcome.folder) or (outcome.stopped or "").partition(":")[0],  # the whole reason is the error
    )
