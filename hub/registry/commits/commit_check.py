"""The proof that a commit's tree holds a sound adapter, made before anything refers to it.

Knows the store and the recorded bases, no HTTP, no torch. A tree without a complete adapter (only a card so far, or
config without weights) is fine; one with an adapter must pass every check that needs no base weights.
"""

from dataclasses import dataclass, replace

from graft.hub.adapters.model_card import split_card
from graft.hub.adapters.validation import (
    CARD,
    CONFIG,
    PROVENANCE,
    WEIGHTS,
    Inspection,
    inspect_artifact,
    read_json,
    read_text,
)
from graft.hub.registry import base_models
from graft.hub.registry.storage.arrivals import Blob
from graft.hub.registry.storage.blob_store import BlobStore, Tree
from graft.hub.registry.storage.database import Database

READ = frozenset((CARD, CONFIG, PROVENANCE, *WEIGHTS))


@dataclass(frozen=True)
class Proven:
    """A tree that may be committed: what its adapter is, its card taken apart, and the files that were rewritten."""

    tree: Tree
    inspection: Inspection | None
    card: dict[str, object]
    body: str
    rewritten: tuple[Blob, ...] = ()


def prove(db: Database, blobs: BlobStore, tree: Tree, user: str, *, made_for: str | None = None) -> Proven:
    """Raises ArtifactError and its kin with what to mend.

    `user` publishes it, and what they said of a base nobody has recorded counts for them. `made_for`: the fingerprint of the base that lies where the config names a path, for one who can look there.
    """
    with blobs.lay_out({path: sha256 for path, sha256 in tree.items() if path in READ}) as folder:
        card, body = split_card(read_text(folder / CARD)) if CARD in tree else ({}, "")
        if not holds_adapter(tree):
            return Proven(tree, None, card, body)
        provenance = read_json(folder / PROVENANCE) if PROVENANCE in tree else {}
        declared = base_models.declared_base(read_json(folder / CONFIG), provenance).or_made_for(made_for)
        claimed = base_models.claimed_id(card)
        public = base_models.public_base_id(declared, lambda fingerprint: _known_id(db, user, fingerprint), claimed)
        if public != declared.name and declared.name:
            written = {
                path: blobs.put_bytes(text.encode())
                for path, text in base_models.rewrite_base_name(folder, declared, public)
            }
            renamed = tree | {path: blob.sha256 for path, blob in written.items()}
            again = prove(db, blobs, renamed, user, made_for=declared.fingerprint)
            return replace(again, rewritten=tuple(written.values()))
        spec = base_models.find_base_for(db, user, declared.fingerprint) if declared.fingerprint else None
        spec = spec or base_models.find_base(db, id=public or claimed)
        inspection = inspect_artifact(folder, spec)
    if spec is not None and inspection.base_fingerprint is None:  # a plain PEFT folder whose base, known by id, fits
        inspection = replace(inspection, base_fingerprint=spec.fingerprint)
    return Proven(tree, replace(inspection, base_id=inspection.base_id or claimed), card, body)


def holds_adapter(tree: Tree) -> bool:
    """Whether config and weights are both there."""
    return CONFIG in tree and any(name in tree for name in WEIGHTS)


def _known_id(db: Database, user: str, fingerprint: str) -> str | None:
    spec = base_models.find_base_for(db, user, fingerprint)
    return spec.id if spec else None
