"""An adapter's folder on this disk: which of its files are published, and the base it names.

Knows neither SQLite nor HTTP.
"""

import json
from pathlib import Path
from typing import Any

from graft.hub import bases
from graft.hub.errors import ArtifactError
from graft.hub.inspection import CARD, CONFIG, PROVENANCE, WEIGHTS
from graft.hub.spec import BaseSpec, recorded_spec
from graft.hub.whole import STAGING

IGNORED = frozenset((".git", ".cache", "__pycache__", ".DS_Store", ".ipynb_checkpoints", STAGING))

# What an adapter is, and under which terms: all that is fetched from a hub.
PULLED = frozenset((CONFIG, *WEIGHTS, PROVENANCE, CARD, "LICENSE", "NOTICE"))


def publishable_files(folder: Path) -> dict[str, Path]:
    """Repo path -> file. Raises ArtifactError for a folder that is absent or holds a link or no adapter's config."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder: give the one that holds {CONFIG}.")
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if IGNORED & set(relative.parts):
            continue
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link: put the file itself there.")
        if path.is_file():
            found[relative.as_posix()] = path
    if CONFIG not in found:
        raise ArtifactError(f"{folder} holds no {CONFIG}: publish the folder that `graft train --out` wrote.")
    return found


def base_at_hand(folder: Path) -> BaseSpec | None:
    """The manifest of the base that the adapter names, if that is a folder on this machine with its manifest in it."""
    declared = bases.declared_base(_json_or_empty(folder / CONFIG), _json_or_empty(folder / PROVENANCE))
    return recorded_spec(declared.name) if declared.name else None


def _json_or_empty(path: Path) -> dict[str, Any]:
    """Only to look for a base; the proof reports what is wrong with the file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
