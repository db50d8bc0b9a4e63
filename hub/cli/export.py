"""`graft export`: an adapter merged into its base, summed with others, or written for another library."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from graft.hub.chat.words import read_words
from graft.hub.machine.output_folder import claim
from graft.hub.terminal.base_argument import BASE

if TYPE_CHECKING:
    from graft.hub.adapters.artifact import Artifact
    from graft.hub.base.model import Base


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--base", "base_folder", required=True, type=BASE, help="The adapter's base: a folder, a name, or an id.")
@click.option("--merge", "merged", metavar="OUT", type=click.Path(path_type=Path), help="Write base + adapter there.")
@click.option(
    "--to",
    metavar="peft|adapterhub OUT",
    type=(click.Choice(["peft", "adapterhub"]), click.Path(path_type=Path)),
    help="Write it there in that library's format.",
)
@click.option("--plus", multiple=True, metavar="DIR=WEIGHT", help="With --to peft: add another LoRA, so much of it.")
@click.option("--weight", default=1.0, show_default=True, help="With --plus: how much of DIR itself.")
@click.option("--allow-base-mismatch", is_flag=True, help="Even if the adapter was made for another base.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def export(
    folder: Path,
    base_folder: str,
    merged: Path | None,
    to: tuple[str, Path] | None,
    plus: tuple[str, ...],
    weight: float,
    allow_base_mismatch: bool,
    as_json: bool,
) -> None:
    """Merge the adapter in DIR into a copy of its base, or write it for another library."""
    library: str | None = None
    if merged is not None and to is None:
        out = merged
    elif to is not None and merged is None:
        library, out = to
    else:
        raise click.UsageError("Give either --merge OUT or --to peft|adapterhub OUT.")
    if not math.isfinite(weight):
        raise click.UsageError(f"--weight must be a finite number, not {weight}.")
    if plus and library != "peft":
        raise click.UsageError("--plus goes with --to peft OUT.")
    others = [_parse_plus(text) for text in plus]
    claim(out)

    from graft.hub.adapters.artifact import load_artifact, save_artifact
    from graft.hub.adapters.formats import convert
    from graft.hub.adapters.merging import lineage, weighted_sum
    from graft.hub.base.model import load_base

    base = load_base(base_folder, dtype="float32", device="cpu")
    artifact, *added = (
        load_artifact(path, base.spec, allow_base_mismatch=allow_base_mismatch)
        for path in (folder, *(path for path, _ in others))
    )
    said: dict[str, object] = {"out": str(out), "digest": artifact.digest}
    words = read_words(folder)
    if library is None:
        if words.template and base.tokenizer is not None:
            base.tokenizer.chat_template = words.template
        said["difference"] = _merge(artifact, base, base_folder, out)
    elif plus:
        parts = [(artifact, weight), *zip(added, (share for _, share in others), strict=True)]
        config, tensors = weighted_sum(parts, base)
        save_artifact(out, artifact.method, config, tensors, base.spec, provenance=lineage(parts, base.spec))
    else:
        convert(artifact, base, library, out, words)
    click.echo(json.dumps(said) if as_json else f"Wrote {out}.")


def _merge(artifact: "Artifact", base: "Base", base_folder: str, out: Path) -> float:
    """Merge in float32, round once to the base's own dtype, save with the tokenizer. -> difference before rounding."""
    from transformers import CONFIG_NAME, AutoConfig

    from graft.hub.adapters.merging import merge
    from graft.hub.base.model import move
    from graft.hub.machine.atomic_files import write_folder_whole

    difference = merge(artifact, base)
    stored = AutoConfig.from_pretrained(base_folder).dtype
    with write_folder_whole(out, last=[CONFIG_NAME]) as staging:
        move(base.model, stored or base.dtype)
        base.model.save_pretrained(staging)
        if base.tokenizer is not None:
            base.tokenizer.save_pretrained(staging)
    return difference


def _parse_plus(text: str) -> tuple[Path, float]:
    path, _, weight = text.rpartition("=")
    try:
        share = float(weight)
    except ValueError:
        share = math.nan
    if not path or not math.isfinite(share):
        raise click.UsageError(f"--plus {text!r} must be DIR=WEIGHT, a finite number.")
    return Path(path), share
