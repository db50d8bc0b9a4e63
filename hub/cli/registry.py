"""`graft registry`: check, collect garbage, back up, restore, count."""

from dataclasses import asdict
from pathlib import Path

import click

from graft.hub.errors import GraftError
from graft.hub.registry import maintenance
from graft.hub.registry.registry import Registry
from graft.hub.terminal.options import json_option, registry_option
from graft.hub.terminal.tables import print_json, print_table


@click.group()
def registry() -> None:
    """Upkeep of a registry on this machine."""


def _show(title: str, facts: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    rows = ((key, f"{value:,}" if isinstance(value, int) else value) for key, value in facts.items())
    print_table(title, ("what", "how many:"), rows)


@registry.command()
@registry_option
@json_option
def check(registry_path: Path, as_json: bool) -> None:
    """Re-hash every blob and follow every reference. Exit 1 when something is wrong."""
    report = maintenance.check(Registry(registry_path, create=False))
    facts = asdict(report) | {"problems": list(report.problems)}
    _show(f"Check of {registry_path}", facts if as_json else {**facts, "problems": len(report.problems)}, as_json)
    if report.problems:
        raise GraftError("The registry is not sound:\n" + "\n".join(report.problems))


@registry.command()
@registry_option
@click.option("--grace", default=3600.0, show_default=True, help="Seconds that garbage must have lain.")
@json_option
def gc(registry_path: Path, grace: float, as_json: bool) -> None:
    """Take what deleted repos and interrupted uploads left."""
    _show("Collected", asdict(maintenance.collect(Registry(registry_path, create=False), grace)), as_json)


@registry.command()
@registry_option
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
def backup(registry_path: Path, folder: Path, as_json: bool) -> None:
    """Copy the registry, also one in use, into FOLDER; a repeated backup copies only what is new."""
    report = maintenance.backup(Registry(registry_path, create=False), folder)
    _show(f"Backed up to {folder}", asdict(report) | {"problems": list(report.problems)}, as_json)


@registry.command()
@registry_option
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
def restore(registry_path: Path, folder: Path, as_json: bool) -> None:
    """Make the registry anew from a backup in FOLDER, every byte checked."""
    report = maintenance.restore(folder, registry_path)
    _show(f"Restored to {registry_path}", asdict(report) | {"problems": list(report.problems)}, as_json)


@registry.command()
@registry_option
@json_option
def stats(registry_path: Path, as_json: bool) -> None:
    """Counts and sizes."""
    _show(str(registry_path), dict(maintenance.stats(Registry(registry_path, create=False))), as_json)
