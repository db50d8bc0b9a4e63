"""`graft keys`: the file of keys that `graft serve --keys` takes."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from pydantic import ValidationError

from graft.hub.errors import GraftError
from graft.hub.terminal.options import Duration, json_option
from graft.hub.terminal.tables import day, print_json, print_table
from graft.server.keys.holders import EVERYTHING
from graft.server.keys.key_changes import add_key, remove_keys
from graft.server.keys.key_file import KeyTable, hash_of, new_key, read_tables, read_text

file_option = click.option(
    "--file",
    "path",
    default="keys.toml",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file of keys.",
)
amount = click.IntRange(1)


@click.group()
def keys() -> None:
    """Keys of the inference server: who may call it, for which adapters, how often."""


@keys.command()
@click.argument("name")
@file_option
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="NAME",
    help="Good for this only: NAME, NS/NAME, NS/*, task:T. Repeatable.  [default: all]",
)
@click.option("--no-base", is_flag=True, help="Not for the bare base.")
@click.option("--requests", type=amount, help="Requests a minute.")
@click.option("--tokens", type=amount, help="Tokens a minute, of prompts and answers.")
@click.option("--concurrency", type=amount, help="Requests at once.")
@click.option("--weight", default=1.0, show_default=True, type=float, help="Of its share while others ask too.")
@click.option("--admin", is_flag=True, help="May load, unload and pin adapters, and read /metrics.")
@click.option("--expires", "life", type=Duration(), help="When it ends: 30d, 12h. Default: never.")
@json_option
def new(
    name: str,
    path: Path,
    adapters: tuple[str, ...],
    no_base: bool,
    requests: int | None,
    tokens: int | None,
    concurrency: int | None,
    weight: float,
    admin: bool,
    life: timedelta | None,
    as_json: bool,
) -> None:
    """Make a key, add its hash to the file, and print the key, once. A server that has the file takes it within a second."""
    key = new_key()
    try:
        table = KeyTable(
            name=name,
            hash=hash_of(key),
            adapters=list(adapters) or [EVERYTHING],
            base=not no_base,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            concurrency=concurrency,
            weight=weight,
            admin=admin,
            expires=datetime.now(UTC).replace(microsecond=0) + life if life else None,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise GraftError(f"{first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}.") from None
    add_key(path, table)
    if as_json:
        print_json({"name": name, "key": key, "file": str(path)})
        return
    click.echo(key)
    click.echo(
        f"This is the only time it is shown; {path} has its hash. `graft keys revoke {name} --file {path}` takes it back.",
        err=True,
    )


@keys.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@file_option
@json_option
def revoke(names: tuple[str, ...], path: Path, as_json: bool) -> None:
    """Take keys out of the file, by their names: all of them, or none. A server that has the file refuses them within a second."""
    remove_keys(path, set(names))
    if as_json:
        print_json({"revoked": sorted(set(names)), "file": str(path)})
        return
    click.echo(
        f"{path} has no {', '.join(sorted(set(names)))} any more: a server that has it refuses them within a second."
    )


@keys.command("list")
@file_option
@json_option
def list_keys(path: Path, as_json: bool) -> None:
    """Every key of the file, and what it is good for; never the key itself."""
    tables = read_tables(read_text(path), path).key
    if as_json:
        print_json([table.model_dump(mode="json", exclude={"hash"}) for table in tables])
        return
    rows = [
        (
            table.name,
            ", ".join([*table.adapters, *(["the base"] if table.base else [])]),
            _limits(table),
            f"{table.weight:g}",
            "yes" if table.admin else "",
            day(table.expires.isoformat() if table.expires else "never"),
        )
        for table in tables
    ]
    print_table("Keys", ("key", "good for?", "limits?", "weight:", "admin", "expires"), rows, empty="none yet")


def _limits(table: KeyTable) -> str:
    limits = {
        "requests a minute": table.requests_per_minute,
        "tokens a minute": table.tokens_per_minute,
        "at once": table.concurrency,
    }
    return ", ".join(f"{most:,} {what}" for what, most in limits.items() if most is not None) or "none"
