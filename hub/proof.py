"""The proof that a commit's tree holds a sound adapter, made before anything refers to it.

Knows the store and the recorded bases, no HTTP, no torch. A tree without a complete adapter (only a card so far, or
config without weights) is fine; one with an adapter must pass every check that needs no base weights.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from sqlite_utils import Database

from graft.hub import bases
from graft.hub.cards import split_card
from graft.hub.commits import Tree
from graft.hub.errors import ArtifactError
from graft.hub.inspection import CARD, CONFIG, PROVENANCE, WEIGHTS, Inspection, inspect_artifact
from graft.hub.store import Blob, BlobStore


@dataclass(frozen=True)
class Proven:
    """A tree that may be committed: what its adapter is, its card taken apart, and the files that were rewritten."""

    tree: Tree
    found: Inspection | None
    card: dict[str, Any]
    body: str
    rewritten: tuple[Blob, ...] = ()


def prove(db: Database, blobs: BlobStore, tree: Tree) -> Proven:
    """Raises ArtifactError and its kin with what to mend."""
    card, body = split_card(_text(blobs, tree, CARD))
    if not holds_adapter(tree):
        return Proven(tree, None, card, body)
    declared = bases.declared_base(_mapping(blobs, tree, CONFIG), _mapping(blobs, tree, PROVENANCE))
    public = bases.public_base_id(declared, lambda fingerprint: _recorded_id(db, fingerprint))
    if public != declared.name and declared.name:
        renamed, written = _renamed(blobs, tree, declared, public)
        return replace(prove(db, blobs, renamed), rewritten=written)
    spec = bases.find_base(db, fingerprint=declared.fingerprint) or bases.find_base(db, id=public)
    with blobs.laid_out(tree) as folder:
        found = inspect_artifact(folder, spec)
    if spec is not None and found.base_fingerprint is None:  # a plain PEFT folder whose base, known by id, fits
        found = replace(found, base_fingerprint=spec.fingerprint)
    return Proven(tree, found, card, body)


def holds_adapter(tree: Tree) -> bool:
    """Whether config and weights are both there."""
    return CONFIG in tree and any(name in tree for name in WEIGHTS)


def _renamed(blobs: BlobStore, tree: Tree, declared: bases.Declared, id: str) -> tuple[Tree, tuple[Blob, ...]]:
    rewritten = {CONFIG: bases.renamed_config(_text(blobs, tree, CONFIG), declared, id)}
    if CARD in tree:
        rewritten[CARD] = bases.renamed_card(_text(blobs, tree, CARD), declared, id)
    written = {path: blobs.put_bytes(text.encode()) for path, text in rewritten.items()}
    return tree | {path: blob.sha256 for path, blob in written.items()}, tuple(written.values())


def _recorded_id(db: Database, fingerprint: str) -> str | None:
    spec = bases.find_base(db, fingerprint=fingerprint)
    return spec.id if spec else None


def _text(blobs: BlobStore, tree: Tree, path: str) -> str:
    if path not in tree:
        return ""
    try:
        return blobs.read(tree[path]).decode()
    except UnicodeDecodeError:
        raise ArtifactError(f"{path} is not UTF-8 text: save it as UTF-8.") from None


def _mapping(blobs: BlobStore, tree: Tree, path: str) -> dict[str, Any]:
    try:
        found = json.loads(_text(blobs, tree, path) or "{}")
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise ArtifactError(f"{path} is nested too deeply to be a configuration.") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} must hold a JSON object.")
    return found
