"""`graft estimate`: what a training costs, before it is paid."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from graft.hub.errors import GraftError
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import parse_settings
from graft.trainer.commands.shared import (
    BUDGET,
    base_loader,
    chat_template_option,
    config_options,
    names_of,
    print_numbers,
)
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan, Plan, check_against_spec, check_plan, room_of

if TYPE_CHECKING:
    from graft.trainer.reports.estimate import Cost, FullFineTuning

_MEMORY = ("base", "master", "gradient", "optimizer", "activation", "peak")
_RUN = {field.name for field in fields(RunConfig)} - {"checkpoint_every"}


@click.command()
@click.option("--base", required=True, type=BASE, help="A folder, an imported base's name or id, or a hub id.")
@click.option("--method", "methods", required=True, help="One or several, separated by commas.")
@click.option("--set", "options", multiple=True, metavar="KEY=VALUE", help="An option of the method.")
@click.option("--data", type=click.Path(path_type=Path), help="Training data, whose lengths are taken.")
@click.option("--length", type=int, default=128, show_default=True, help="Tokens of a sequence, without --data.")
@click.option("--learned", type=int, default=8, show_default=True, help="Of which completion, without --data.")
@config_options("recipe", TrainConfig, only=BUDGET)
@config_options("run", RunConfig, only=_RUN)
@chat_template_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def estimate(
    base: str,
    methods: str,
    options: tuple[str, ...],
    data: Path | None,
    length: int,
    learned: int,
    recipe: TrainConfig,
    run: RunConfig,
    chat_template: Path | None,
    as_json: bool,
) -> None:
    """Tell a training's memory and time before they are spent, from a few small steps of it."""
    settings = parse_settings(options)
    plans = tuple(
        AdapterPlan(method=name, data=data or Path(), out=Path(name), options=settings, recipe=recipe)
        for name in names_of("--method", methods)
    )
    check_plan(Plan(base, plans, run))
    from graft.trainer.reports import estimate as estimating

    load = base_loader(base, run, chat_template=chat_template)
    loaded = load()
    check_against_spec(Plan(base, plans, run), loaded.spec)
    limit = min(recipe.text_limit(room_of(plan, loaded.spec)) for plan in plans)
    examples = recipe.batch_size
    if data:
        length, learned, examples = estimating.lengths_of(data, loaded, limit, recipe.batch_size)
    if not 0 < learned < length <= limit:
        raise GraftError(
            f"A sequence of {length} tokens, {learned} of them learned, does not fit into {limit}, which is what this "
            f"base, its virtual tokens and --max-length leave."
        )
    steps = recipe.steps_over(examples)
    sizes = {"length": length, "learned": learned, "steps": steps}
    costs = []
    for plan in plans:
        costs.append(estimating.estimate(loaded, plan, run, **sizes))
        if plan.method in BASELINES:
            loaded = load()  # the baseline has changed its own
    full = estimating.full_fine_tuning(loaded.spec.parameters)
    if as_json:
        print_numbers({"costs": [asdict(cost) for cost in costs], "full_fine_tuning": asdict(full), **sizes})
    else:
        _print(costs, full, sizes)


def _print(costs: list["Cost"], full: "FullFineTuning", sizes: dict[str, int]) -> None:
    from graft.hub.machine.bytes_text import bytes_text

    time = _table(
        f"{sizes['steps']} steps, sequences of {sizes['length']} tokens",
        ("method", "trained", "of the base", "s/step", "time"),
        [
            (
                c.method,
                f"{c.trained_parameters:,}",
                f"{c.share:.3%}",
                f"{c.seconds_per_step:.2f}",
                f"{c.seconds:,.0f} s",
            )
            for c in costs
        ],
    )
    memory = _table(
        "Memory in MiB",
        ("method", *_MEMORY),
        [(cost.method, *(_mib(getattr(cost, f"{key}_bytes")) for key in _MEMORY)) for cost in costs],
    )
    for table in (time, memory):  # one would be too wide for a terminal of 80 columns
        Console().print(table)
    Console().print(
        f"Full fine-tuning in float32 with AdamW would need {bytes_text(full.weights_bytes)} of weights, "
        f"{bytes_text(full.gradient_bytes)} of gradients and {bytes_text(full.moments_bytes)} of moments: "
        f"{bytes_text(full.total_bytes)} before any activation."
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _mib(count: int) -> str:
    mib = count / 2**20
    return f"{mib:,.0f}" if mib >= 1000 else f"{mib:.1f}"
