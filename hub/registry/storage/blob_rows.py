"""The row that makes a stored blob one that the tables refer to."""

from graft.hub.errors import ConflictError
from graft.hub.registry.storage.arrivals import Blob
from graft.hub.registry.storage.blob_store import BlobStore
from graft.hub.registry.storage.database import Database


def require_stored(blobs: BlobStore, blob: Blob) -> None:
    """Raises ConflictError where `gc` took the file between its upload and this."""
    if not blobs.has(blob.sha256):
        raise ConflictError(f"Blob {blob.sha256} is gone: upload the file again.")


def record_blob(db: Database, blobs: BlobStore, blob: Blob, who: str, at: str) -> None:
    """Inside the transaction that refers to it: files are collected under the write lock, so it can't go any more. Its
    bytes count for whoever was the first to have it recorded.

    Raises ConflictError where `gc` took the file between its upload and this.
    """
    require_stored(blobs, blob)
    db.execute(
        "INSERT OR IGNORE INTO blobs (sha256, git_oid, size, created_at, who) VALUES (?, ?, ?, ?, ?)",
        [blob.sha256, blob.git_oid, blob.size, at, who],
    )
