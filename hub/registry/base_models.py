"""The bases a registry knows by fingerprint, and the base an artifact folder names.

A path on somebody's disk tells the next reader nothing, so publishing replaces it by the id recorded for the base's
fingerprint. Knows neither torch nor HTTP.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from graft.hub.adapters.model_card import texts
from graft.hub.adapters.validation import CARD, CONFIG, base_name, fingerprint_of, read_text
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, ConflictError, NotFoundError
from graft.hub.registry import search
from graft.hub.registry.audit import audit
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.registry.storage.timestamps import now

MAX_CLAIMS = 20  # of one publisher
CONFIG_KEYS = ("base_model_name_or_path", "model_name")  # PEFT's key; AdapterHub's
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# A base in a client's download cache: the path says which hub's repo it is.
_DOWNLOADED = re.compile(r".*/models--(?P<org>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/[^/]+/?")


@dataclass(frozen=True)
class Declared:
    """The base that an artifact says it is for: the key in its config, what stands there, a fingerprint if recorded."""

    key: str
    name: str
    fingerprint: str | None

    @property
    def is_local(self) -> bool:
        return bool(self.name) and (not HUB_ID.fullmatch(self.name) or Path(self.name).is_dir())

    def or_made_for(self, fingerprint: str | None) -> "Declared":
        """With the fingerprint of the base that lies where `name` leads, unless the adapter records one itself."""
        return dataclasses.replace(self, fingerprint=self.fingerprint or fingerprint)


def declared_base(config: dict[str, object], provenance: dict[str, object]) -> Declared:
    """Read from a parsed adapter_config.json and graft.json."""
    name = base_name(config) or ""
    key = next((key for key in CONFIG_KEYS if config.get(key) == name), CONFIG_KEYS[0])
    return Declared(key, name, fingerprint_of(provenance))


def add_base(db: Database, spec: BaseSpec, user: str, *, replace: bool) -> None:
    """Record a base's manifest under its fingerprint, for everybody; without `replace`, one that is there stays as it is.

    Raises ArtifactError for one without an id, ConflictError where another base has that id.
    """
    _require_id(spec)
    if not replace and find_base(db, fingerprint=spec.fingerprint) is not None:
        return
    other = db.execute("SELECT fingerprint FROM bases WHERE id = ? AND fingerprint != ?", [spec.id, spec.fingerprint])
    if (row := other.fetchone()) is not None:
        raise ConflictError(
            f"{spec.id} is the id of another base here (fingerprint {row['fingerprint'][:12]}, this one has "
            f"{spec.fingerprint[:12]}): import this one with an --id of its own."
        )
    db.execute(
        "INSERT INTO bases (fingerprint, id, manifest, created_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (fingerprint) DO UPDATE SET id = excluded.id, manifest = excluded.manifest",
        [spec.fingerprint, spec.id, spec.to_json(), now()],
    )
    search.rename_base(db, spec.fingerprint, spec.id or "")
    audit(db, user, "base.add", spec.id or "", spec.fingerprint)


def take_base(db: Database, spec: BaseSpec, user: str) -> None:
    """A base that lies beside what an owner of the registry publishes: known to all from now on; where another one has its
    id, for `user` alone."""
    with write_transaction(db):
        try:
            add_base(db, spec, user, replace=False)
        except ConflictError:
            _claim_base(db, spec, user)


def _require_id(spec: BaseSpec) -> None:
    if not spec.id:
        raise ArtifactError("This base has no id yet: give it one with `graft base import SRC DIR --id ORG/NAME`.")


def claim_base(db: Database, spec: BaseSpec, who: str) -> None:
    """Keep what a publisher says of a base, for their own commits alone: the latest MAX_CLAIMS of theirs."""
    with write_transaction(db):
        _claim_base(db, spec, who)


def _claim_base(db: Database, spec: BaseSpec, who: str) -> None:
    _require_id(spec)
    db.execute(
        "INSERT OR REPLACE INTO base_claims (who, fingerprint, id, manifest, created_at) VALUES (?, ?, ?, ?, ?)",
        [who, spec.fingerprint, spec.id, spec.to_json(), now()],
    )
    db.execute(
        "DELETE FROM base_claims WHERE who = ? AND fingerprint NOT IN "
        "(SELECT fingerprint FROM base_claims WHERE who = ? ORDER BY created_at DESC LIMIT ?)",
        [who, who, MAX_CLAIMS],
    )


def find_base_for(db: Database, who: str, fingerprint: str) -> BaseSpec | None:
    """The recorded manifest of a base, else what `who` themselves said of it."""
    if recorded := find_base(db, fingerprint=fingerprint):
        return recorded
    claimed = "SELECT manifest FROM base_claims WHERE who = ? AND fingerprint = ?"
    row = db.execute(claimed, [who, fingerprint]).fetchone()
    return BaseSpec.from_json(row["manifest"]) if row else None


def find_base(db: Database, *, fingerprint: str | None = None, id: str | None = None) -> BaseSpec | None:
    """The recorded manifest: by fingerprint where there is one, else by id if just one base bears it."""
    column, value = ("fingerprint", fingerprint) if fingerprint else ("id", id)
    rows = db.execute(f"SELECT manifest FROM bases WHERE {column} = ? LIMIT 2", [value]).fetchall()
    return BaseSpec.from_json(rows[0]["manifest"]) if len(rows) == 1 else None


def is_known(db: Database, id: str) -> bool:
    """Whether a base of this id is recorded."""
    return db.execute("SELECT 1 FROM bases WHERE id = ? COLLATE NOCASE LIMIT 1", [id]).fetchone() is not None


def get_base(db: Database, id_or_fingerprint: str) -> BaseSpec:
    """Raises NotFoundError where none is recorded, or several bear the id."""
    spec = find_base(db, fingerprint=id_or_fingerprint) or find_base(db, id=id_or_fingerprint)
    if spec is None:
        raise NotFoundError(f"No base {id_or_fingerprint!r} is recorded here: `graft base import` gives a base an id.")
    return spec


def claimed_id(card: dict[str, object]) -> str | None:
    """The hub id that a model card gives as its base, where it gives just one."""
    ids = [name for name in texts(card.get("base_model")) if HUB_ID.fullmatch(name) and "/" in name]
    return ids[0] if len(ids) == 1 and not Path(ids[0]).is_dir() else None


def downloaded_id(path: str) -> str | None:
    """The hub id that a path in a client's download cache spells, None for another path."""
    downloaded = _DOWNLOADED.fullmatch(path)
    return f"{downloaded['org']}/{downloaded['name']}" if downloaded else None


def public_base_id(declared: Declared, lookup: Callable[[str], str | None], claimed: str | None = None) -> str:
    """What should stand in the config: the recorded id of the base's fingerprint, else a hub id as it is, or as the
    path of a client's download cache spells it, or (`claimed`) as the card has it beside a path in the config.

    Raises ArtifactError for a local path of a base that nobody recorded.
    """
    recorded = lookup(declared.fingerprint) if declared.fingerprint else None
    recorded = recorded or downloaded_id(declared.name)
    if recorded is None and declared.is_local:
        recorded = claimed
    if recorded is None and declared.is_local:
        raise ArtifactError(
            f"{CONFIG} names its base by the local path {declared.name!r}, which means nothing elsewhere, and no base "
            "with its fingerprint is recorded here. Give the base an id once with "
            f"`graft base import {declared.name} DIR --id ORG/NAME`, or write the base's hub id into {declared.key!r}."
        )
    return recorded or declared.name


def rewrite_base_name(folder: Path, declared: Declared, id: str) -> Iterator[tuple[str, str]]:
    """What stands in the files of an adapter that name the base, with its public id instead."""
    config = json.loads(read_text(folder / CONFIG))
    yield CONFIG, json.dumps({**config, declared.key: id}, indent=2, sort_keys=True) + "\n"
    if (folder / CARD).exists():
        # Every whole mention of the local path.
        mention = rf"(?<![\w/.-]){re.escape(declared.name)}(?![\w/-])"
        yield CARD, re.sub(mention, lambda _: id, read_text(folder / CARD))
