"""`graft compare`: the literature's table for your data."""

from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.hub.errors import GraftError
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.machine.ray_tasks import Spread
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import hub_option, local_user, open_registry_to_publish, registry_option
from graft.hub.terminal.ray_options import ray_options
from graft.trainer.commands.shared import (
    bars,
    base_loader,
    chat_template_option,
    check_early,
    config_options,
    names_of,
    read_template,
    say,
)
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan, Plan, check_plan, claim_comparison

if TYPE_CHECKING:
    from graft.hub.base.model import Base
    from graft.hub.registry.interface import AnyRegistry
    from graft.trainer.reports.comparison import Comparison

_RUN = {field.name for field in fields(RunConfig)} - {"checkpoint_every"}  # a method is trained whole, or again


@click.command()
@click.option("--base", required=True, type=BASE, help="A folder, an imported base's name or id, or a hub id.")
@click.option("--task", default="untasked", help="The task's slug.")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Training data: JSONL, CSV, Parquet, hf:NAME."
)
@click.option("--eval-data", required=True, type=click.Path(path_type=Path), help="Held-out data, which decides.")
@click.option("--methods", default="lora,series,parallel,prompt,prefix,ptuning", show_default=True)
@click.option("--out", default="comparison", show_default=True, type=click.Path(path_type=Path))
@click.option("--together", is_flag=True, help="All adapters in one pass: sooner done, but no time and memory of each.")
@click.option("--publish", metavar="NAMESPACE", help="Publish the best adapter, as NAMESPACE/TASK-METHOD.")
@registry_option
@hub_option
@config_options("recipe", TrainConfig)
@config_options("run", RunConfig, only=_RUN)
@chat_template_option
@click.option("--resume", is_flag=True, help="Go on with a comparison that was interrupted.")
@ray_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compare(
    base: str,
    task: str,
    data: Path,
    eval_data: Path,
    methods: str,
    out: Path,
    together: bool,
    publish: str | None,
    registry_path: Path,
    hub_url: str | None,
    recipe: TrainConfig,
    run: RunConfig,
    chat_template: Path | None,
    resume: bool,
    as_json: bool,
    spread: Spread | None,
) -> None:
    """Train METHODS under one budget and write the literature's table: Markdown, JSON and a plot.

    With --ray each method is a task of a Ray cluster.
    """
    if spread and together:
        raise click.UsageError("--together trains all in one pass, which --ray can't spread: leave one of them out.")
    template = AdapterPlan(method="", data=data, out=out, task=task, eval_data=eval_data, recipe=recipe)
    names = names_of("--methods", methods)
    if publish and not set(names) - set(BASELINES):
        raise GraftError(
            "--publish: full and last-layers leave bases, which are not published. Add a method that adapts."
        )
    plan = Plan(base, tuple(_plan_method(template, name, publish) for name in names), run)
    check_plan(plan)
    claim_comparison(out, resume=resume)
    check_early(plan)
    wanted = [adapter.publish for adapter in plan.adapters if adapter.publish]
    registry = open_registry_to_publish(registry_path, hub_url, wanted) if wanted else None
    try:
        if spread:
            comparison = _spread(plan, names, template, chat_template, spread)
        else:
            comparison = _here(plan, names, template, chat_template, together=together, quiet=as_json)
    except KeyboardInterrupt:
        left = ", ".join(sorted(path.name for path in out.iterdir())) if out.is_dir() else ""
        kept = f" What was finished is in {out}: {left}." if left else ""
        raise GraftError(f"Interrupted.{kept} The same command with --resume goes on with the rest.") from None
    _write(comparison, out, as_json=as_json)
    if registry:
        _publish_best(registry, comparison, f"{publish}/{task}")
    for line in comparison.failed:
        say(f"{line.method} failed: {line.failed}.")
    if len(comparison.failed) == len(names):
        raise GraftError(f"No method was trained to its end; the table in {out} says why.")


def _write(comparison: "Comparison", out: Path, *, as_json: bool) -> None:
    """Print the table and write it beside the artifacts, as text, JSON and picture; then no row need be kept any more."""
    from graft.trainer.reports.journal import drop_journal
    from graft.trainer.reports.table import as_json as json_of
    from graft.trainer.reports.table import as_markdown, plot

    table = as_markdown(comparison)
    click.echo(json_of(comparison) if as_json else table)  # before the disk could be full
    with write_folder_whole(out) as staging:
        (staging / "compare.md").write_text(table, "utf-8")
        (staging / "compare.json").write_text(json_of(comparison))
        plot(comparison, staging / "compare.svg")
        written = sorted(path.name for path in staging.iterdir())
    drop_journal(out)
    say(f"Written to {out}: {', '.join(written)}; an artifact a method beside them.")


def _publish_best(registry: "AnyRegistry", comparison: "Comparison", prefix: str) -> None:
    best = comparison.winner
    if best is None or best.folder is None:
        say("Nothing is published: no adapter was trained to its end.")
        return
    published = f"{prefix}-{best.method}"
    revision = registry.publish(Path(best.folder), published, user=local_user())
    say(f"Published {published}@{revision.id}")


def _here(
    plan: Plan,
    names: list[str],
    template: AdapterPlan,
    chat_template: Path | None,
    *,
    together: bool,
    quiet: bool,
) -> "Comparison":
    """One method after the other, or all adapters in one pass, in this process."""
    from graft.hub.base.wanted_base import WantedBase
    from graft.trainer.reports.comparison import compare as compared
    from graft.trainer.reports.journal import FolderJournal, asked_of

    words = read_template(chat_template)

    def journal(base: "Base") -> FolderJournal:
        found = (base.spec.fingerprint, base.dtype_name, base.device.type)
        loaded = WantedBase(plan.base, *found, chat_template=words)
        return FolderJournal(template.out, asked_of(template, plan.run, loaded, together=together))

    with nullcontext() if quiet else bars() as shown:
        load = base_loader(plan.base, plan.run, chat_template=chat_template)
        watchers = [shown] if shown else []
        return compared(load, names, template, plan.run, together=together, watchers=watchers, journal=journal)


def _spread(
    plan: Plan, names: list[str], template: AdapterPlan, chat_template: Path | None, spread: Spread
) -> "Comparison":
    """Each method on a worker."""
    say(f"Looking at {plan.base} ...")  # torch takes its seconds
    from graft.trainer.commands.compare_spread import compare_spread
    from graft.trainer.commands.train_spread import wanted_by
    from graft.trainer.reports.journal import FolderJournal, asked_of
    from graft.trainer.training.sent import SentRun, examples_of

    base = wanted_by(plan, chat_template, say)
    journal = FolderJournal(template.out, asked_of(template, plan.run, base, together=False))
    run = SentRun(base, plan.run, examples_of([template]))
    return compare_spread(run, names, template, journal, spread, say)


def _plan_method(template: AdapterPlan, method: str, namespace: str | None) -> AdapterPlan:
    wanted = f"{namespace}/{template.task}-{method}" if namespace and method not in BASELINES else ""
    return replace(template, method=method, out=template.out / method, publish=wanted)
