"""What the hub's commands share: where the registry is, and the two ways to print, a table or one JSON document."""

import getpass
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from graft.hub.registry.commits.changes import MAX_WEIGHTS_BYTES
from graft.hub.registry.registry import Registry

if TYPE_CHECKING:
    from graft.hub.registry.hub_client import RemoteRegistry

registry_option = click.option(
    "--registry",
    "registry_path",
    default="registry.db",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The registry on this machine.",
)
hub_option = click.option("--hub", "hub_url", metavar="URL", help="A hub instead (graft's own, or huggingface.co).")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class Size(click.ParamType):
    """Bytes: a number, or one with K, M, G (powers of 1024)."""

    name = "bytes"

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        number, unit = (value[:-1], value[-1].upper()) if value[-1:].isalpha() else (value, "")
        factor = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(unit)
        try:
            size = int(float(number) * (factor or 0))
        except (ValueError, OverflowError):
            size = 0
        if size <= 0:
            self.fail(f"{value!r} is no size: write bytes, or 512M, 4G.", param, ctx)
        return size


max_weights_option = click.option(
    "--max-weights-bytes",
    type=Size(),
    default=MAX_WEIGHTS_BYTES,
    show_default="8G",
    help="The largest file of weights that is taken.",
)


MEASURED_CHARS = 10_000  # so wide that a table is measured as it would like to be


def placed(command: Callable) -> Callable:
    """Adds --registry, --hub and --json."""
    return registry_option(hub_option(json_option(command)))


def opened(
    registry_path: Path, hub_url: str | None, *, create: bool = False, max_weights_bytes: int = MAX_WEIGHTS_BYTES
) -> "Registry | RemoteRegistry":
    """The registry that the options name. Raises NotFoundError for a missing file unless `create`, GraftError for a hub
    that does not answer."""
    if hub_url is None:
        return Registry(registry_path, create=create, max_weights_bytes=max_weights_bytes)
    from graft.hub.registry.hub_client import RemoteRegistry  # the client takes its time to import

    hub = RemoteRegistry(hub_url)
    hub.require_there()  # the client would try again and again, half a minute in all
    return hub


def opened_to_publish(registry_path: Path, hub_url: str | None, names: Iterable[str]) -> "Registry | RemoteRegistry":
    """As `opened`, made when missing. Raises GraftError where a hub is not there or would not take `names` from us."""
    registry = opened(registry_path, hub_url, create=True)
    if not isinstance(registry, Registry):
        registry.require_writer(names)
    return registry


def local_user() -> str:
    """Who is written down for what is done straight on a registry file."""
    return getpass.getuser()


def print_json(found: Any) -> None:
    """One JSON document; dataclasses as objects."""
    click.echo(json.dumps(found, default=_plain))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing"
) -> None:
    """A table for people. `empty` is said when there is no row.

    A column whose name ends in ':' is set flush right; one that ends in '?' (before the ':') is left out, the last
    first, where the terminal is too narrow for all.
    """
    console, shown = Console(), list(range(len(columns)))
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
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


def short(revision: str | None) -> str:
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
