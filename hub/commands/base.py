"""`graft base`: bring a base into a plain safetensors folder once, and say what a folder holds."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from graft.hub.commands.shared import json_option, opened
from graft.hub.errors import BaseModelError, GraftError
from graft.hub.spec import BaseSpec, recorded_spec

_recorded_in = click.option(
    "--registry",
    "registry_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also note the base in this registry, which then checks adapters for it when they are published.",
)


@click.group()
def base() -> None:
    """Frozen bases: import one, show its identity."""


@base.command("import")
@click.argument("source")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--id", "base_id", required=True, help="The name it is known by, ORG/NAME.")
@click.option("--gguf-file", help="A GGUF file within SOURCE (default: the only one there).")
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the written weights.")
@_recorded_in
@json_option
def import_(
    source: str,
    folder: Path,
    base_id: str,
    gguf_file: str | None,
    dtype: str,
    registry_path: Path | None,
    as_json: bool,
) -> None:
    """Convert SOURCE (a GGUF file, a folder, or a hub id) into FOLDER, with its id and fingerprint beside it."""
    from graft.hub.importing import import_base

    if base_id.count("/") != 1 or not all(base_id.split("/")):
        raise click.UsageError(f"--id must be ORG/NAME, not {base_id!r}.")
    console = Console(stderr=True)
    with console.status(f"Importing {source} ..."):
        spec = import_base(source, folder, base_id, gguf_file=gguf_file, dtype=dtype)
    _record(spec, registry_path)
    _print(spec, folder, as_json)


@base.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_recorded_in
@json_option
def info(folder: Path, registry_path: Path | None, as_json: bool) -> None:
    """Show a base's id, fingerprint, parts and sizes (computed from its weights, never taken from its name)."""
    from graft.hub.base import load_base

    if not folder.exists():
        raise BaseModelError(f"There is no folder {folder}.")
    spec = load_base(folder, device="cpu").spec
    noted = recorded_spec(folder)
    if noted is not None and noted.fingerprint != spec.fingerprint:
        raise GraftError(
            f"The weights in {folder} are not those that were imported as {noted.id}: their fingerprint is "
            f"{spec.fingerprint[:12]}, recorded is {noted.fingerprint[:12]}. Import the base again."
        )
    _record(spec, registry_path)
    _print(spec, folder, as_json)


def _record(spec: BaseSpec, registry_path: Path | None) -> None:
    if registry_path is not None:
        opened(registry_path, None, create=True).add_base(spec)


def _print(spec: BaseSpec, folder: Path, as_json: bool) -> None:
    parts = spec.parts
    facts = {
        "id": spec.id,
        "fingerprint": spec.fingerprint,
        "folder": str(folder),
        "family": spec.model_type,
        "parameters": spec.parameters,
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "heads": spec.num_heads,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_positions": spec.max_positions,
        "linears": list(parts.linears),
        "norms": [*parts.norms, parts.final_norm],
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    table = Table(show_header=False, title=spec.id or str(folder))
    for key, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(key.replace("_", " "), shown)
    Console().print(table)
