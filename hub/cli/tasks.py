"""`graft task`: what adapters are for, with the metric and the data they are scored by."""

from pathlib import Path

import click

from graft.hub.errors import DataError
from graft.hub.evaluation.metrics import METRICS
from graft.hub.evaluation.task_data import parse_examples
from graft.hub.evaluation.tokenization import spaces_at_the_join
from graft.hub.terminal.options import local_user, open_registry, registry_options
from graft.hub.terminal.tables import day, print_json, print_table


@click.group()
def task() -> None:
    """Tasks: a metric and an evaluation set each."""


@task.command()
@click.argument("slug", metavar="T")
@click.option("--metric", required=True, type=click.Choice(tuple(METRICS)), help="What is measured.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The evaluation set, JSONL.")
@click.option("--description", default="", help="One sentence for people.")
@registry_options
def add(
    slug: str, metric: str, data: Path, description: str, registry_path: Path, hub_url: str | None, as_json: bool
) -> None:
    """Add task T, or give it a new evaluation set (older scores stay and are not ranked with newer ones)."""
    try:
        examples = data.read_bytes()
    except OSError as error:
        raise DataError(f"{data} can't be read: {error.strerror}.") from None
    registry = open_registry(registry_path, hub_url, create=True)
    if note := spaces_at_the_join(parse_examples(examples, str(data))):
        click.echo(f"note: {note}", err=True)
    made = registry.add_task(slug, metric, examples, description, user=local_user())
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made.slug}: {made.examples} examples, {made.metric}")


@task.command("list")
@registry_options
def list_(registry_path: Path, hub_url: str | None, as_json: bool) -> None:
    """Every task of the registry."""
    tasks = open_registry(registry_path, hub_url).tasks()
    if as_json:
        print_json(tasks)
        return
    rows = [(t.slug, t.metric, t.examples, t.data_hash[:12], t.description, day(t.updated_at)) for t in tasks]
    columns = ("task", "metric", "examples:", "data", "description", "updated")
    print_table("Tasks", columns, rows, empty="none yet, `graft task add` adds one")
