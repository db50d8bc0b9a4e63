"""An adapter's folder on this disk: which of its files are published, and the base it names.

Knows neither SQLite nor HTTP.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from graft.hub.adapters.model_card import split_card
from graft.hub.adapters.validation import CARD, CONFIG, PROVENANCE, WEIGHTS, find_weights, read_json, read_text
from graft.hub.base.manifest import BaseSpec, recorded_spec
from graft.hub.chat.words import GENERATION, TEMPLATE, TOKENIZER
from graft.hub.errors import ArtifactError
from graft.hub.machine.atomic_files import STAGING
from graft.hub.registry import base_models
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES, START_BYTES
from graft.hub.registry.commits.trainer_leftovers import ESSENTIAL, LeftOut, find_leftover

IGNORED = frozenset((".git", ".cache", "__pycache__", ".DS_Store", ".ipynb_checkpoints", STAGING))

# What an adapter is, says of text, and under which terms: all that is fetched from a hub. In this order it is laid into a folder,
# so that the weights are there only when all of it is.
PULLED = ("LICENSE", "NOTICE", CARD, TEMPLATE, GENERATION, TOKENIZER, PROVENANCE, CONFIG, *WEIGHTS)


@dataclass(frozen=True)
class Contents:
    """What a folder has to publish: repo path -> file, and what stays behind."""

    files: Mapping[str, Path]
    left_out: tuple[LeftOut, ...]


def contents(folder: Path, max_bytes: int = MAX_WEIGHTS_BYTES) -> Contents:
    """Raises ArtifactError for a folder that is absent, or lacks an adapter's config or weights."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder: give the one that holds {CONFIG}.")
    files, others = {}, []
    for relative, path in _walk(folder):
        away = _leads_away(relative, path, folder) or _left_unread(relative, path)
        away = away or find_leftover(relative, path.stat().st_size, _start(path), max_bytes)
        if away is None:
            files[relative] = path
        else:
            others.append(away)
    if CONFIG not in files:
        raise ArtifactError(f"{folder} holds no {CONFIG}: publish the folder that `graft train --out` wrote.")
    find_weights(folder)
    return Contents(files, tuple(others))


def base_at_hand(folder: Path) -> BaseSpec | None:
    """The manifest of the base that the adapter names, if that is a folder on this machine with its manifest in it."""
    name = base_models.declared_base(_json_or_empty(folder / CONFIG), _json_or_empty(folder / PROVENANCE)).name
    return recorded_spec(Path(name).expanduser()) if name else None


@contextmanager
def stage_upload(folder: Path) -> Iterator[tuple[Path, BaseSpec | None]]:
    """What of `folder` is sent, a local base path replaced by its id, and the base's manifest if it is at hand."""
    provenance = read_json(folder / PROVENANCE) if (folder / PROVENANCE).exists() else {}
    spec = base_at_hand(folder)
    named = base_models.declared_base(read_json(folder / CONFIG), provenance)
    named = named.or_made_for(spec.fingerprint if spec else None)
    known = {spec.fingerprint: spec.id} if spec else {}
    made_for = provenance.get("base")
    recorded = made_for.get("id") if isinstance(made_for, dict) else None
    if named.fingerprint and isinstance(recorded, str) and base_models.HUB_ID.fullmatch(recorded) and "/" in recorded:
        known.setdefault(named.fingerprint, recorded)
    card = split_card(read_text(folder / CARD))[0] if (folder / CARD).exists() else {}
    public = base_models.public_base_id(named, known.get, base_models.claimed_id(card))
    with tempfile.TemporaryDirectory() as name:
        for path, source in contents(folder).files.items():
            target = Path(name, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())  # weights may be large
        if public != named.name:
            for path, text in base_models.rewrite_base_name(folder, named, public):
                Path(name, path).unlink()
                Path(name, path).write_text(text, "utf-8")
        yield Path(name), spec


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Repo path and path of every file and link, in order."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not IGNORED & set(relative.parts) and (path.is_symlink() or not path.is_dir()):
            yield relative.as_posix(), path


def _leads_away(relative: str, path: Path, folder: Path) -> LeftOut | None:
    """A link that leads out of the folder, or nowhere: who publishes may not know what is at its other end.

    A client's download cache keeps each file as a link to one of the same download, which leads nowhere else. Raises
    ArtifactError for one of the adapter's own files.
    """
    target = path.resolve()
    if target.is_file() and (not path.is_symlink() or _own_root(folder) in target.parents):
        return None
    if relative in ESSENTIAL:
        raise ArtifactError(f"{path} is a symbolic link to {target}, outside its folder: put the file itself there.")
    return LeftOut(relative, "a link that leads out of the folder" if path.is_symlink() else "no plain file")


def _own_root(folder: Path) -> Path:
    """What a link in `folder` may lead into: the folder, or the whole of a download (CACHE/snapshots/REVISION)."""
    folder = folder.resolve()
    downloads = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    return downloads.with_name("blobs") if downloads else folder


def _left_unread(relative: str, path: Path) -> LeftOut | None:
    return None if relative in ESSENTIAL or os.access(path, os.R_OK) else LeftOut(relative, "it can't be read")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)


def _json_or_empty(path: Path) -> dict[str, object]:
    """Only to look for a base; the proof reports what is wrong with the file."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
