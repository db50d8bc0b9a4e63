"""`graft compare`: the literature's table for your data."""

from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import click

from graft.hub.errors import GraftError
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.machine.output_folder import claim
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import hub_option, local_user, open_registry_to_publish, registry_option
from graft.trainer.commands.shared import (
    bars,
    base_loader,
    chat_template_option,
    check_early,
    config_options,
    names_of,
    say,
)
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan, Plan, check_plan

_RUN = {field.name for field in fields(RunConfig)} - {"checkpoint_every"}  # a comparison can't be resumed


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
    as_json: bool,
) -> None:
    """Train METHODS under one budget and write the literature's table: Markdown, JSON and a plot."""
    template = AdapterPlan(method="", data=data, out=out, task=task, eval_data=eval_data, recipe=recipe)
    names = names_of("--methods", methods)
    if publish and not set(names) - set(BASELINES):
        raise GraftError(
            "--publish: full and last-layers leave bases, which are not published. Add a method that adapts."
        )
    plan = Plan(base, tuple(_plan_method(template, name, publish) for name in names), run)
    check_plan(plan)
    claim(out)
    check_early(plan)
    wanted = [adapter.publish for adapter in plan.adapters if adapter.publish]
    registry = open_registry_to_publish(registry_path, hub_url, wanted) if wanted else None
    from graft.trainer.reports.comparison import compare as compared
    from graft.trainer.reports.table import as_json as json_of
    from graft.trainer.reports.table import as_markdown, plot

    with nullcontext() if as_json else bars() as shown:
        watchers = [shown] if shown else []
        load = base_loader(base, run, chat_template=chat_template)
        try:
            comparison = compared(load, names, template, run, together=together, watchers=watchers)
        except KeyboardInterrupt:
            left = ", ".join(sorted(path.name for path in out.iterdir())) if out.is_dir() else ""
            kept = f" What was finished is in {out}: {left}." if left else ""
            raise GraftError(f"Interrupted: a comparison can't be continued.{kept}") from None
    table = as_markdown(comparison)
    click.echo(json_of(comparison) if as_json else table)  # before the disk could be full
    with write_folder_whole(out) as staging:
        (staging / "compare.md").write_text(table, "utf-8")
        (staging / "compare.json").write_text(json_of(comparison))
        plot(comparison, staging / "compare.svg")
        written = sorted(path.name for path in staging.iterdir())
    say(f"Written to {out}: {', '.join(written)}; an artifact a method beside them.")
    if registry and (best := comparison.winner) and best.folder:
        published = f"{publish}/{task}-{best.method}"
        revision = registry.publish(Path(best.folder), published, user=local_user())
        say(f"Published {published}@{revision.id}")
    elif registry:
        say("Nothing is published: no adapter was trained to its end.")
    for line in comparison.failed:
        say(f"{line.method} failed: {line.failed}.")
    if len(comparison.failed) == len(names):
        raise GraftError(f"No method was trained to its end; the table in {out} says why.")


def _plan_method(template: AdapterPlan, method: str, namespace: str | None) -> AdapterPlan:
    wanted = f"{namespace}/{template.task}-{method}" if namespace and method not in BASELINES else ""
    return replace(template, method=method, out=template.out / method, publish=wanted)
