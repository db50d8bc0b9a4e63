"""Options that several commands take: where the registry is, sizes, numbers, settings of a method."""

import getpass
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import click

from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.registry import Registry

MAX_SECONDS = 1e9  # of a span of time: some thirty years
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}  # in seconds

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


class ByteSize(click.ParamType):
    """Bytes: a number, or one with K, M, G, T (powers of 1024), with or without a B."""

    name = "bytes"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number = value.rstrip("BbKkMmGgTt")
        unit = value[len(number) :].upper().removesuffix("B")
        factor = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(unit)
        try:
            size = int(float(number) * (factor or 0))
        except (ValueError, OverflowError):
            size = 0
        if size <= 0:
            self.fail(f"{value!r} is no size: write bytes, or 512M, 4G.", param, ctx)
        return size


class FiniteRange(click.FloatRange):
    """A FloatRange of numbers: nan lies in each of click's, and inf in all that are open above."""

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class Duration(click.ParamType):
    """A span of time: a number with s, m, h or d. `or_seconds`: a number alone is of seconds, and may be 0."""

    name = "duration"

    def __init__(self, *, or_seconds: bool = False):
        self._or_seconds = or_seconds

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number, unit = (value[:-1], value[-1]) if value[-1:] in UNITS else (value, "s" if self._or_seconds else "")
        try:
            seconds = float(number) * UNITS[unit]
        except (ValueError, KeyError):
            seconds = -1.0
        if not 0 <= seconds <= MAX_SECONDS or (seconds == 0 and not self._or_seconds):
            more = ", or a number of seconds" if self._or_seconds else ""
            self.fail(f"{value!r} is no span of time: write 30d, 12h or 90m{more}.", param, ctx)
        return timedelta(seconds=seconds)


def parse_settings(settings: Iterable[str], flag: str = "--set") -> dict[str, str]:
    """A flag's `key=value`s as a table. Raises click.UsageError."""
    table = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{flag} takes KEY=VALUE, not {setting!r}.")
        table[key.strip()] = value.strip()
    return table


max_weights_option = click.option(
    "--max-weights-bytes",
    type=ByteSize(),
    default=MAX_WEIGHTS_BYTES,
    show_default="8G",
    help="The largest file of weights that is taken.",
)


def registry_options(command: Callable) -> Callable:
    """Adds --registry, --hub and --json."""
    return registry_option(hub_option(json_option(command)))


def open_registry(
    registry_path: Path, hub_url: str | None, *, create: bool = False, max_weights_bytes: int = MAX_WEIGHTS_BYTES
) -> AnyRegistry:
    """The registry that the options name. Raises NotFoundError for a missing file unless `create`, GraftError for a hub
    that does not answer."""
    if hub_url is None:
        return Registry(registry_path, create=create, max_weights_bytes=max_weights_bytes)
    from graft.hub.registry.remote.client import RemoteRegistry  # the client takes its time to import

    hub = RemoteRegistry(hub_url)
    hub.require_there()  # the client would try again and again, half a minute in all
    return hub


def open_registry_to_publish(registry_path: Path, hub_url: str | None, names: Iterable[str]) -> AnyRegistry:
    """As `open_registry`, made when missing.

    Raises GraftError where a hub is not there or would not take `names` from us.
    """
    registry = open_registry(registry_path, hub_url, create=True)
    registry.require_writer(names)
    return registry


def local_user() -> str:
    """Who is written down for what is done straight on a registry file."""
    return getpass.getuser()
