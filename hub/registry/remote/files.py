"""Files of a hub's repo against files on this disk."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub.hf_api import RepoFile

from graft.hub.errors import ArtifactError
from graft.hub.registry.commits.publish_folder import PULLED
from graft.hub.registry.remote.api import HubApi
from graft.hub.registry.storage.arrivals import CHUNK_BYTES


@dataclass(frozen=True)
class ListedFile:
    """A file of a commit as its hub lists it: its size in bytes and its hash, git's own or (`sha256`) that of its bytes."""

    path: str
    size: int
    oid: str
    sha256: str | None


def adapter_files(listing: Any) -> list[ListedFile]:
    """Those that an adapter is made of, of a commit's listing. Raises ValueError and its kin for what is no listing.

    Nothing else is asked for or written, so a hub's own spelling of a path leads nowhere.
    """
    files = {row["path"]: _listed(row) for row in listing if row["type"] == "file" and row["path"] in PULLED}
    return list(files.values())


def _listed(row: Any) -> ListedFile:
    size, lfs = int(row["size"]), row.get("lfs")
    if size < 0:
        raise ValueError("a file has no less than nothing")
    return ListedFile(row["path"], size, str(row["oid"]), str(lfs["oid"]) if lfs else None)


def fetch_file(hub: HubApi, repo: str, revision: str, file: ListedFile, target: Path) -> None:
    """Write a file to `target`, hashed on the way. Raises ArtifactError where it isn't what the hub listed.

    Not by way of the client's download cache: there a hub's own headers say where a file is written.
    """
    digest = hashlib.sha256() if file.sha256 else _git_digest(file.size)
    with target.open("wb") as out:
        for piece in hub.download(f"/{quote(repo)}/resolve/{revision}/{quote(file.path)}", file.size):
            digest.update(piece)
            out.write(piece)
    if digest.hexdigest() != (file.sha256 or file.oid):
        raise ArtifactError(f"{file.path} arrived damaged, or is not what the hub lists: pull again.")


def is_intact(path: Path, file: RepoFile) -> bool:
    """Whether `path` holds just what the hub says of `file`, by its sha256 or the name that git gives it."""
    if file.lfs is not None:
        digest, wanted = hashlib.sha256(), file.lfs.sha256
    else:
        digest, wanted = _git_digest(path.stat().st_size), file.blob_id
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == wanted


def _git_digest(size: int) -> "hashlib._Hash":
    """What git names a file of `size` bytes by, once it has seen them."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
