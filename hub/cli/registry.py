"""`graft registry`: check, collect garbage, back up, restore, count."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import click

from graft.hub.errors import GraftError
from graft.hub.registry.maintenance.backup import backup as back_up
from graft.hub.registry.maintenance.backup import restore as restore_from
from graft.hub.registry.maintenance.check import Report
from graft.hub.registry.maintenance.check import check as check_registry
from graft.hub.registry.maintenance.garbage import GRACE_S, collect
from graft.hub.registry.maintenance.stats import stats as count
from graft.hub.registry.registry import Registry
from graft.hub.terminal.options import Duration, json_option, registry_option
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


def _show_report(title: str, report: Report, as_json: bool) -> None:
    problems = list(report.problems) if as_json else len(report.problems)
    _show(title, asdict(report) | {"bytes_per_s": report.bytes_per_s, "problems": problems}, as_json)


@registry.command()
@registry_option
@click.option("--audit-head", help="What an earlier check or backup printed: the audit must still have that entry.")
@json_option
def check(registry_path: Path, audit_head: str | None, as_json: bool) -> None:
    """Re-hash every blob and follow every reference. Exit 1 when something is wrong."""
    report = check_registry(Registry(registry_path, create=False), audit_head)
    _show_report(f"Check of {registry_path}", report, as_json)
    if report.problems:
        raise GraftError("The registry is not sound:\n" + "\n".join(report.problems))


@registry.command()
@registry_option
@click.option(
    "--grace",
    default=timedelta(seconds=GRACE_S),
    show_default="1d",
    type=Duration(or_seconds=True),
    help="How long garbage must have lain: 1d, 12h, or seconds.",
)
@json_option
def gc(registry_path: Path, grace: timedelta, as_json: bool) -> None:
    """Take what deleted repos and interrupted uploads left. Exit 1 while a backup or a check is running."""
    _show("Collected", asdict(collect(Registry(registry_path, create=False), grace.total_seconds())), as_json)


@registry.command()
@registry_option
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
def backup(registry_path: Path, folder: Path, as_json: bool) -> None:
    """Copy the registry, also one in use, into FOLDER; a repeated backup copies only what is new.

    Every byte of the copy is checked before it takes the place of the last one. Exit 1 where it could not be restored;
    the last one is kept then.
    """
    _show_report(f"Backed up to {folder}", back_up(Registry(registry_path, create=False), folder), as_json)


@registry.command()
@registry_option
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@json_option
def restore(registry_path: Path, folder: Path, as_json: bool) -> None:
    """Make the registry anew from a backup in FOLDER, every byte checked."""
    _show_report(f"Restored to {registry_path}", restore_from(folder, registry_path), as_json)


@registry.command()
@registry_option
@json_option
def stats(registry_path: Path, as_json: bool) -> None:
    """Counts and sizes."""
    _show(str(registry_path), dict(count(Registry(registry_path, create=False))), as_json)
