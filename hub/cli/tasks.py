"""`graft task`: what adapters are for, with the metric and the data they are scored by."""

from pathlib import Path

import click

from graft.hub.errors import DataError, GraftError
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
@click.option("--owner", "owners", multiple=True, metavar="NS", help="Who says what task:T serves. Repeatable.")
@registry_options
def add(
    slug: str,
    metric: str,
    data: Path,
    description: str,
    owners: tuple[str, ...],
    registry_path: Path,
    hub_url: str | None,
    as_json: bool,
) -> None:
    """Add task T, or give it a new evaluation set (older scores stay and are not ranked with newer ones)."""
    try:
        examples = data.read_bytes()
    except OSError as error:
        raise DataError(f"{data} can't be read: {error.strerror}.") from None
    registry = open_registry(registry_path, hub_url, create=True)
    if note := spaces_at_the_join(parse_examples(examples, str(data))):
        click.echo(f"note: {note}", err=True)
    made = registry.add_task(slug, metric, examples, description, owners=owners or None, user=local_user())
    if as_json:
        print_json(made)
    else:
        click.echo(f"{made.slug}: {made.examples} examples, {made.metric}")


@task.command()
@click.argument("slug", metavar="T")
@click.option("--add", "added", multiple=True, metavar="NS", help="One more namespace. Repeatable.")
@click.option("--remove", "removed", multiple=True, metavar="NS", help="One less. Repeatable.")
@registry_options
def owners(
    slug: str,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    registry_path: Path,
    hub_url: str | None,
    as_json: bool,
) -> None:
    """Whose promotions to production move what `task:T` serves: these namespaces', and admins'."""
    registry = open_registry(registry_path, hub_url)
    found = registry.task(slug)
    if added or removed:
        gone = {name.lower() for name in removed}
        if unknown := gone - set(found.owners):
            raise GraftError(f"{', '.join(sorted(unknown))}: no owner of {slug} (they are: {_names(found.owners)}).")
        wanted = [name for name in (*found.owners, *added) if name.lower() not in gone]
        found = registry.set_task_owners(slug, wanted, user=local_user())
    if as_json:
        print_json({"task": slug, "owners": found.owners})
    else:
        click.echo(f"{slug}: {_names(found.owners)}")


def _names(owners: list[str]) -> str:
    return ", ".join(owners) or "admins only"


@task.command("list")
@registry_options
def list_(registry_path: Path, hub_url: str | None, as_json: bool) -> None:
    """Every task of the registry."""
    tasks = open_registry(registry_path, hub_url).tasks()
    if as_json:
        print_json(tasks)
        return
    rows = [
        (t.slug, t.metric, t.examples, t.data_hash[:12], _names(t.owners), t.description, day(t.updated_at))
        for t in tasks
    ]
    columns = ("task", "metric", "examples:", "data", "owners?", "description", "updated?")
    print_table("Tasks", columns, rows, empty="none yet, `graft task add` adds one")
