"""Bytes on their way into a store: each file written, hashed and flushed under a name that counts for nothing yet."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from graft.hub.errors import ConflictError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Blob:
    """What a stored file is known by: its own hash, git's name for the same bytes, and its size in bytes."""

    sha256: str
    git_oid: str
    size: int


class Readable(Protocol):
    def read(self, count: int, /) -> bytes:
        """At least one byte and about `count`; none at the end."""
        ...


class Arrivals:
    """The files of one delivery, in the folder `incoming`. `staged`: where each lies -> its sha256."""

    def __init__(self, incoming: Path):
        self._incoming = incoming
        self.staged: dict[Path, str] = {}

    def put(self, stream: Readable, size: int, expected_sha256: str | None = None) -> Blob:
        """Take exactly `size` bytes of `stream`; return what they are known by.

        Raises ConflictError when the stream ends early, goes on, or does not hash to `expected_sha256`;
        nothing is left behind then, nor when the disk fills up (OSError).
        """
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(descriptor, "wb") as out:
                written = 0
                while chunk := stream.read(min(CHUNK_BYTES, size - written + 1)):
                    written += len(chunk)
                    if written > size:
                        break
                    sha256.update(chunk)
                    git.update(chunk)
                    out.write(chunk)
                if written != size:
                    raise ConflictError(f"Expected {size} bytes and received {written}: send the file again.")
                digest = sha256.hexdigest()
                if expected_sha256 not in (None, digest):
                    raise ConflictError(
                        f"The bytes received hash to {digest}, not to {expected_sha256}: send them again."
                    )
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            os.unlink(name)
            raise
        self.staged[Path(name)] = digest
        return Blob(digest, git.hexdigest(), size)

    def discard(self) -> None:
        """Of an interrupted delivery."""
        for path in self.staged:
            path.unlink(missing_ok=True)
