"""`graft publish | pull | search | promote | history`: adapters in and out, and the names that move over them."""

from dataclasses import asdict
from pathlib import Path

import click

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.base.manifest import recorded_spec
from graft.hub.errors import NotFoundError
from graft.hub.machine.output_folder import claim
from graft.hub.registry.commits.publish_folder import contents
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.naming import PRODUCTION
from graft.hub.registry.queries import Revision
from graft.hub.registry.search import SORTS, Query
from graft.hub.terminal.options import local_user, max_weights_option, open_registry, registry_options
from graft.hub.terminal.strangers_words import visible_text
from graft.hub.terminal.tables import amount, day, print_json, print_table, short_id


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", metavar="NS/NAME")
@click.option("--tag", "tags", multiple=True, help="A name for this version that stays, such as v1. Repeatable.")
@click.option("--private", is_flag=True, help="For your namespace's members only (when the repo is new).")
@click.option("--message", "-m", default="", help="What is new in this version.")
@max_weights_option
@registry_options
def publish(
    folder: Path,
    name: str,
    tags: tuple[str, ...],
    private: bool,
    message: str,
    max_weights_bytes: int,
    registry_path: Path,
    hub_url: str | None,
    as_json: bool,
) -> None:
    """Publish the adapter in FOLDER as a new version of NS/NAME.

    What a trainer leaves beside it (checkpoints, optimizer states, logs, pickles) is left out, and named.
    """
    registry = open_registry(registry_path, hub_url, create=True, max_weights_bytes=max_weights_bytes)
    left_out = contents(folder, max_weights_bytes).left_out
    revision = registry.publish(folder, name, tags=tags, private=private, user=local_user(), message=message)
    if as_json:
        print_json({**asdict(revision), "left_out": left_out})
        return
    click.echo(f"{name}@{revision.id}")
    for file in left_out:
        click.echo(f"left out: {file}", err=True)
    for warning in registry.warnings(f"{name}@{revision.id}"):
        click.echo(f"note: {warning}", err=True)


@click.command()
@click.argument("name", metavar="NS/NAME[@REV]")
@click.option("--out", type=click.Path(path_type=Path), help="The folder to write (default: the adapter's own name).")
@registry_options
def pull(name: str, out: Path | None, registry_path: Path, hub_url: str | None, as_json: bool) -> None:
    """Fetch an adapter's files, every byte checked. REV: a commit, branch, tag or alias."""
    from rich.console import Console

    from graft.hub.terminal.download_progress import Pull  # not for a search

    folder = out or Path(name.partition("@")[0].rpartition("/")[2].removeprefix(TASK_PREFIX))
    claim(folder)
    registry = open_registry(registry_path, hub_url)
    with Pull(Console(stderr=True), name) as told:
        revision = registry.pull(name, folder, told=told)
    if as_json:
        print_json({"folder": str(folder), "revision": revision})
    else:
        click.echo(f"{revision.repo}@{revision.id} -> {folder}")


@click.command()
@click.argument("text", default="")
@click.option("--task", default="", help="Only adapters of this task.")
@click.option("--base", default="", help="Only adapters of this base (its id, its fingerprint, or its folder).")
@click.option("--method", default="", help="Only adapters of this method.")
@click.option("--author", default="", help="Only adapters of this namespace.")
@click.option("--sort", default="updated", show_default=True, type=click.Choice(sorted(SORTS)))
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@registry_options
def search(
    text: str,
    task: str,
    base: str,
    method: str,
    author: str,
    sort: str,
    limit: int,
    registry_path: Path,
    hub_url: str | None,
    as_json: bool,
) -> None:
    """Find adapters by TEXT in their name, tags or card, by task, base and method."""
    registry = open_registry(registry_path, hub_url)
    spec = recorded_spec(Path(base).expanduser()) if base else None
    base = registry.base_name(spec) if spec else base
    page = registry.search(Query(text=text, task=task, base=base, method=method, author=author, sort=sort, limit=limit))
    if as_json:
        print_json(page.entries)
        return
    rows = [
        (
            entry.name,
            entry.task,
            entry.method,
            "" if entry.score is None else f"{entry.score:.3f}",
            short_id(entry.production),
            entry.base,
            amount(entry.parameters),
            entry.downloads,
            day(entry.updated_at),
        )
        for entry in page.entries
    ]
    columns = ("adapter", "task", "method", "score:", "production?", "base?", "parameters?:", "downloads?:", "updated?")
    print_table(
        f"{page.total} found" if page.exact else f"At least {page.total} found",
        columns,
        rows,
        empty="no adapter answers to that",
    )


@click.command()
@click.argument("name", metavar="NS/NAME@REV")
@click.argument("alias")
@click.option("--why", default="", help="The reason; kept in the history.")
@click.option("--rollback", is_flag=True, help="Undo the alias's last move instead (REV is not needed).")
@registry_options
def promote(
    name: str, alias: str, why: str, rollback: bool, registry_path: Path, hub_url: str | None, as_json: bool
) -> None:
    """Point ALIAS (production, ...) at a version of an adapter. `task:T` serves what is in production for task T."""
    registry = open_registry(registry_path, hub_url)
    if rollback:
        revision = registry.rollback(name.partition("@")[0], alias, who=local_user(), why=why)
    else:
        revision = registry.promote(name, alias, who=local_user(), why=why)
    served = _served_by_task(registry, revision) if alias == PRODUCTION else revision
    if as_json:
        print_json({"alias": alias, "revision": revision, "task_serves": served})
        return
    click.echo(f"{revision.repo}@{alias} -> {revision.id}")
    if served is None or served.id != revision.id:
        now = f"{served.repo}@{short_id(served.id)}" if served else "nothing"
        click.echo(
            f"note: task:{visible_text(revision.task or '')} goes on serving {now}: only promotions by the task's owners and admins change that "
            f"(`graft task owners {revision.task}`).",
            err=True,
        )


def _served_by_task(registry: AnyRegistry, revision: Revision) -> Revision | None:
    """What `task:T` serves of the revision's task, on its base; None: nothing."""
    try:
        return registry.resolve(f"{TASK_PREFIX}{revision.task}", base=revision.base_fingerprint)
    except NotFoundError:
        return None


@click.command()
@click.argument("name", metavar="NS/NAME")
@registry_options
def history(name: str, registry_path: Path, hub_url: str | None, as_json: bool) -> None:
    """Versions of an adapter, and every move of its branches, tags and aliases: what, when, who, why."""
    registry = open_registry(registry_path, hub_url)
    revisions, refs, moves = registry.revisions(name), registry.all_refs(name), registry.history(name)
    if as_json:
        print_json({"name": name, "revisions": revisions, "refs": refs, "moves": moves})
        return
    names: dict[str, list[str]] = {}
    for ref in refs:
        names.setdefault(ref.revision, []).append(ref.name)
    rows = [
        (short_id(each.id), ", ".join(names.get(each.id, ())), each.title, each.author, day(each.created_at))
        for each in revisions
    ]
    print_table(f"Versions of {name}", ("revision", "names", "title", "who", "when"), rows)
    moved = [
        (move.kind, move.name, short_id(move.old), short_id(move.new), move.who, move.why, day(move.at))
        for move in moves
    ]
    print_table("Moves, newest first", ("kind", "name", "from", "to", "who", "why", "when"), moved)
