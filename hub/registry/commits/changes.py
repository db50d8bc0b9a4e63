"""A commit as a calculation: a tree and changes give a new tree; a tree and its circumstances give an id.

Knows neither SQLite, HTTP nor what an adapter is. A tree maps a file's path to its sha256.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from graft.hub.errors import ArtifactError, EntryNotFoundError, TooLargeError
from graft.hub.registry.commits.accepted_files import MAX_TREE_FILES
from graft.hub.registry.storage.arrivals import Blob
from graft.hub.registry.storage.blob_store import Tree


@dataclass(frozen=True)
class Put:
    """Write `blob` at `path`."""

    path: str
    blob: Blob


@dataclass(frozen=True)
class Delete:
    """Take away the file at `path`; with a trailing slash, the folder."""

    path: str


Change = Put | Delete


def apply_changes(tree: Mapping[str, str], changes: Iterable[Change]) -> Tree:
    """The tree after `changes`.

    Raises EntryNotFoundError for a deletion of what isn't there, TooLargeError for too many files.
    """
    result = dict(tree)
    for change in changes:
        match change:
            case Put(path, blob):
                result[path] = blob.sha256
            case Delete(path):
                doomed = [name for name in result if name == path or (path.endswith("/") and name.startswith(path))]
                if not doomed:
                    raise EntryNotFoundError(f"{path} can't be deleted: there is no such file or folder.")
                for name in doomed:
                    del result[name]
    if len(result) > MAX_TREE_FILES:
        raise TooLargeError(f"A repo holds at most {MAX_TREE_FILES} files and this one would have {len(result)}.")
    folders = {str(parent) for name in result for parent in PurePosixPath(name).parents}
    if clash := folders & result.keys():
        raise ArtifactError(f"{min(clash)} can't be a file and a folder at once.")
    return result


def commit_id(repo_id: int, parent: str | None, tree: Mapping[str, str], author: str, title: str, at: str) -> str:
    """40 hex digits, which is how clients know an id from a name that may move."""
    manifest = json.dumps([repo_id, parent, sorted(tree.items()), author, title, at])
    return hashlib.sha1(manifest.encode(), usedforsecurity=False).hexdigest()
