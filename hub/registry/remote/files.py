"""Files of a hub's repo against files on this disk."""

import hashlib
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from graft.hub.errors import ArtifactError
from graft.hub.registry.storage.arrivals import CHUNK_BYTES


def require_intact(path: Path, file: RepoFile) -> None:
    """Clients don't compare what they downloaded with its hash. Raises ArtifactError where it differs."""
    if not is_intact(path, file):
        raise ArtifactError(
            f"{file.path} arrived damaged, or was changed in the download cache: delete {path} and pull again."
        )


def is_intact(path: Path, file: RepoFile) -> bool:
    """Whether `path` holds just what the hub says of `file`, by its sha256 or the name that git gives it."""
    if file.lfs is not None:
        digest, wanted = hashlib.sha256(), file.lfs.sha256
    else:
        digest, wanted = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), file.blob_id
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == wanted
