"""A commit as a calculation: a tree and changes give a new tree; a tree and its circumstances give an id.

Knows neither SQLite, HTTP nor what an adapter is. A tree maps a file's path to its sha256. What may be a file in a
repo at all is decided here, before a byte is stored: an adapter is tensors and text, so nothing that a reader could
unpickle, unpack or execute gets in.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from graft.hub.errors import ArtifactError, EntryNotFoundError, GraftError, TooLargeError
from graft.hub.registry.storage.blob_store import Blob

Tree = dict[str, str]

MAX_WEIGHTS_BYTES = 8 << 30  # of one file of weights, unless a registry is opened with another limit
MAX_FILE_BYTES = 100 << 20  # of any other
MAX_TREE_FILES = 1000
MAX_PATH_CHARS = 250
WEIGHTS_SUFFIX = ".safetensors"
START_BYTES = 16  # what `check_start` looks at

REPO_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
REF_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,98}[A-Za-z0-9_-])?")
# First parts of the hub's own addresses.
RESERVED = frozenset(
    [
        "api",
        "tasks",
        "compare",
        "publish",
        "playground",
        "signin",
        "signout",
        "static",
        "lfs",
        "health",
        "index.json",
        "openapi.json",
    ]
)
COMMIT_ID = re.compile(r"[0-9a-f]{40}")

SUFFIXES = frozenset(
    [
        WEIGHTS_SUFFIX,
        ".json",
        ".jsonl",
        ".md",
        ".txt",
        ".yaml",
        ".yml",
        ".toml",
        ".csv",
        ".tsv",
        ".jinja",
        ".model",
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".webp",
    ]
)
PLAIN_NAMES = frozenset((".gitattributes", ".gitignore", "LICENSE", "NOTICE", "CITATION.cff"))
HOSTILE_STARTS = (
    (b"PK\x03\x04", "a zip archive (PyTorch's pickled weights look like this)"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"#!", "a script"),
    (b"\x89HDF", "an HDF5 file"),
)


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


def check_path(path: str) -> None:
    """Raises ArtifactError for a path that could leave its folder, or a kind of file an adapter never needs."""
    parts = path.split("/")
    if not path or len(path) > MAX_PATH_CHARS or any(part in ("", ".", "..", ".git") for part in parts):
        raise ArtifactError(f"{path!r} is no path for a file in a repo: use a relative one without '..'.")
    if "\\" in path or not path.isprintable():
        raise ArtifactError(f"{path!r} holds a backslash or an unprintable character: rename the file.")
    name = PurePosixPath(path)
    if name.suffix.lower() not in SUFFIXES and name.name not in PLAIN_NAMES:
        raise ArtifactError(
            f"{path} can't be published: weights must be .safetensors, the rest text or pictures "
            f"({' '.join(sorted(SUFFIXES))}). Pickled files can run code where they are loaded; "
            "convert them with safetensors.torch.save_file, and leave training leftovers out."
        )


def check_start(path: str, start: bytes) -> None:
    """Raises ArtifactError when a file's first bytes say that it is not what its name says."""
    for magic, what in HOSTILE_STARTS:
        if start.startswith(magic):
            raise ArtifactError(f"{path} is {what}: publish safetensors and text only.")


def check_size(path: str, size: int, max_weights: int = MAX_WEIGHTS_BYTES) -> None:
    """Raises TooLargeError for weights beyond `max_weights`, or any other file beyond MAX_FILE_BYTES."""
    if path.endswith(WEIGHTS_SUFFIX):
        if size > max_weights:
            raise TooLargeError(
                f"{path} has {size:,} bytes and at most {max_weights:,} of weights are taken: an adapter is much smaller "
                "than its base, so publish only the adapter's own tensors. Where it is one, raise the limit with "
                "--max-weights-bytes, of `graft publish` or of the hub."
            )
    elif size > MAX_FILE_BYTES:
        raise TooLargeError(f"{path} has {size:,} bytes and {MAX_FILE_BYTES:,} are taken of a file without weights.")


def check_repo_name(name: str) -> tuple[str, str]:
    """'ns/name' -> (ns, name). Raises GraftError where it isn't of that form."""
    namespace, slash, short = name.partition("/")
    if not slash or not all(
        REPO_NAME.fullmatch(part) and ".." not in part and "--" not in part for part in (namespace, short)
    ):
        raise GraftError(
            f"{name!r} is no adapter name: write NAMESPACE/NAME, letters, digits, '.', '_' and '-', "
            "at most 96 characters each, starting and ending with a letter or digit."
        )
    if namespace.lower() in RESERVED:
        raise GraftError(f"{namespace!r} is a part of the hub's own addresses: choose another namespace.")
    return namespace, short


def check_ref_name(name: str) -> str:
    """Raises GraftError for what can't be a branch, tag or alias (a commit id can't: it would hide the commit)."""
    if not REF_NAME.fullmatch(name) or ".." in name or "//" in name or COMMIT_ID.fullmatch(name):
        raise GraftError(f"{name!r} can't name a branch, tag or alias: use letters, digits, '.', '_', '-' and '/'.")
    return name


def changed(tree: Mapping[str, str], changes: Iterable[Change]) -> Tree:
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
