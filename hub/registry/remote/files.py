"""Files of a hub's repo against files on this disk."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from huggingface_hub.hf_api import RepoFile
from pydantic import Field, TypeAdapter

from graft.hub.errors import ArtifactError
from graft.hub.registry.commits.publish_folder import PULLED
from graft.hub.registry.remote.api import HubApi
from graft.hub.registry.storage.arrivals import CHUNK_BYTES


@dataclass(frozen=True)
class LargeFile:
    """`oid`: the sha256 of its bytes."""

    oid: str


@dataclass(frozen=True)
class ListedFile:
    """A file of a commit as its hub lists it: its size in bytes and its hash, git's own where it isn't a large one."""

    path: str
    size: Annotated[int, Field(ge=0)]
    oid: str
    lfs: LargeFile | None = None


_ROWS = TypeAdapter(list[dict[str, object]])
_FILE = TypeAdapter(ListedFile)


def adapter_files(listing: object) -> list[ListedFile]:
    """Those that an adapter is made of, of a commit's listing. Raises ValueError for what is no listing.

    Nothing else is asked for or written, so a hub's own spelling of a path leads nowhere.
    """
    rows = [row for row in _ROWS.validate_python(listing) if row.get("type") == "file" and row.get("path") in PULLED]
    return list({file.path: file for file in map(_FILE.validate_python, rows)}.values())


def fetch_file(hub: HubApi, repo: str, revision: str, file: ListedFile, target: Path) -> Iterator[int]:
    """Write a file to `target`, hashed on the way; tells of each piece how many bytes it has. Raises ArtifactError where it isn't
    what the hub listed.

    Not by way of the client's download cache: there a hub's own headers say where a file is written.
    """
    digest = hashlib.sha256() if file.lfs else _git_digest(file.size)
    with target.open("wb") as out:
        for piece in hub.download(f"/{quote(repo)}/resolve/{revision}/{quote(file.path)}", file.size):
            digest.update(piece)
            out.write(piece)
            yield len(piece)
    if digest.hexdigest() != (file.lfs or file).oid:
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
