"""What commands print: a table for people, or one JSON document."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Literal

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graft.hub.terminal.strangers_words import visible_text

MEASURED_CHARS = 10_000  # so wide that a table is measured as it would like to be


def print_json(document: object) -> None:
    """One JSON document."""
    click.echo(json_of(document))


def json_of(document: object) -> str:
    """Dataclasses as objects, sets as sorted lists."""
    return json.dumps(document, default=_to_plain)


def _to_plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing"
) -> None:
    """A table for people. `empty` is said when there is no row.

    A column whose name ends in ':' is set flush right; one that ends in '?' (before the ':') is left out, the last
    first, where the terminal is too narrow for all.
    """
    console, shown = Console(), list(range(len(columns)))
    cells = [["" if cell is None else visible_text(str(cell)) for cell in row] for row in rows]
    table = _table(title, columns, cells, shown)
    while Measurement.get(console, console.options.update_width(MEASURED_CHARS), table).maximum > console.width:
        spare = [at for at in shown if columns[at].rstrip(":").endswith("?")]
        if not spare:
            break
        shown.remove(spare[-1])
        table = _table(title, columns, cells, shown)
    console.print(table if cells else f"{title}: {empty}.")


def _table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    table = Table(title=title, title_justify="left")
    for at in shown:
        justify: Literal["left", "right"] = "right" if columns[at].endswith(":") else "left"
        table.add_column(columns[at].rstrip("?:"), justify=justify, overflow="fold")
    for row in cells:
        table.add_row(*(Text(row[at]) for at in shown))  # cells are people's own words, and no markup
    return table


def short_id(revision: str | None) -> str:
    """A commit id as people read it."""
    return (revision or "")[:10]


def day(at: str) -> str:
    """A time to the minute."""
    return at[:16].replace("T", " ")


def amount(count: int | None) -> str:
    """A count of parameters or bytes with its magnitude: 1.2M."""
    value = float(count or 0)
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{value:.0f}{unit}" if unit == "" else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}G"
