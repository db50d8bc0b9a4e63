"""Bytes by their sha256: `registry.blobs/ab/abcdef...`, each file written once, whole and on disk, or not at all.

Knows neither SQLite nor adapters. A blob appears under its name only after its bytes and its folder entry are
flushed; whoever refers to it (a row in `registry.db`) does so afterwards. So a blob without a row is garbage that
`graft registry gc` takes after a grace period, and a row without a blob cannot come about.
"""

import hashlib
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from graft.hub.errors import GraftError, NotFoundError
from graft.hub.machine.atomic_files import flush
from graft.hub.registry.storage.arrivals import CHUNK_BYTES, Arrivals, Blob, Readable

Tree = dict[str, str]  # a file's path -> its sha256
SHA256 = re.compile(r"[0-9a-f]{64}")


class Seekable(Readable, Protocol):
    def seek(self, at: int, /) -> object: ...


class DamagedBlobError(GraftError):
    """A stored file no longer has the bytes it is named after."""

    status = 500
    code = "damaged_blob"


def sha256_of(path: Path) -> str | None:
    """Of a file on this disk; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class BlobStore:
    """A folder of immutable files named by their hash. Safe for many threads and processes at once."""

    def __init__(self, folder: Path, *, read_only: bool = False):
        """The folder is made when missing, unless the store is `read_only`."""
        self.folder = folder
        self.incoming = folder / "tmp"
        if not read_only and not self.incoming.is_dir():
            self.incoming.mkdir(parents=True, exist_ok=True)
            flush(folder)
            flush(folder.parent)

    def path(self, sha256: str) -> Path:
        """Where the blob lies, whether or not it is there. Raises NotFoundError for a name that is no sha256."""
        if not SHA256.fullmatch(sha256):
            raise NotFoundError(f"{sha256!r} is not a sha256.")
        return self.folder / sha256[:2] / sha256

    @contextmanager
    def receive(self) -> Iterator[Arrivals]:
        """For several files at once: they are blobs when the block ends, and nothing is left of them where it fails.

        Folders are flushed once for all, which is most of what small files cost.
        """
        arrivals = Arrivals(self.incoming)
        try:
            yield arrivals
            if arrivals.staged:
                self._adopt(arrivals.staged)
        except BaseException:
            arrivals.discard()
            raise

    def put(self, stream: Readable, size: int, expected_sha256: str | None = None) -> Blob:
        """Store exactly `size` bytes of `stream`, as Arrivals.put says."""
        with self.receive() as arrivals:
            return arrivals.put(stream, size, expected_sha256)

    def put_bytes(self, data: bytes) -> Blob:
        return self.put(io.BytesIO(data), len(data))

    def _adopt(self, staged: Mapping[Path, str]) -> None:
        """Move flushed files to their names. Renaming over an equal file also renews its age, which keeps `gc` off it."""
        for temporary, sha256 in staged.items():
            target = self.path(sha256)
            target.parent.mkdir(exist_ok=True)
            temporary.chmod(0o444)
            temporary.replace(target)
        for shard in sorted({self.path(sha256).parent for sha256 in staged.values()}):
            flush(shard)
        flush(self.folder)  # a shard may be new

    def describe(self, sha256: str) -> Blob:
        """What a stored blob is known by, read anew from its bytes. Raises DamagedBlobError when it isn't there."""
        size = self.path(sha256).stat().st_size if self.has(sha256) else 0
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with self.open(sha256) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                git.update(chunk)
        return Blob(sha256, git.hexdigest(), size)

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def open(self, sha256: str) -> BinaryIO:
        """Raises DamagedBlobError when the file is gone, which only a hand in the folder can bring about."""
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError:
            raise self._missing_error(sha256) from None

    def _missing_error(self, sha256: str) -> DamagedBlobError:
        return DamagedBlobError(f"Blob {sha256} is missing from {self.folder}: restore it from a backup.")

    def read(self, sha256: str) -> bytes:
        with self.open(sha256) as stream:
            return stream.read()

    def copy_out(self, sha256: str, target: Path) -> None:
        """Write the blob to `target`, hashed on the way. Raises DamagedBlobError rather than hand out wrong bytes."""
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with self.open(sha256) as source, target.open("wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != sha256:
            target.unlink()
            raise _damaged_error(sha256, digest.hexdigest())

    def is_sound(self, sha256: str) -> bool:
        """Whether the file is there and still hashes to its name."""
        return sha256_of(self.path(sha256)) == sha256

    def require_sound(self, sha256: str) -> None:
        """Raises DamagedBlobError for a blob that has gone or no longer hashes to its name."""
        found = sha256_of(self.path(sha256))
        if found is None:
            raise self._missing_error(sha256)
        if found != sha256:
            raise _damaged_error(sha256, found)

    def names(self) -> Iterator[str]:
        """Every blob's sha256, in no order."""
        for shard in self.folder.iterdir() if self.folder.is_dir() else ():
            if len(shard.name) == 2:
                yield from (entry.name for entry in shard.iterdir())

    def remove(self, sha256: str) -> int:
        """Delete a blob nobody refers to; returns the bytes freed."""
        path = self.path(sha256)
        size = path.stat().st_size
        path.unlink()
        return size

    def age_s(self, sha256: str) -> float:
        return time.time() - self.path(sha256).stat().st_mtime

    def sweep_incoming(self, older_than_s: float) -> int:
        """Delete what interrupted uploads left; returns the number of entries."""
        swept = 0
        for entry in self.incoming.iterdir():
            with suppress(FileNotFoundError):  # its upload has just come to its end
                if time.time() - entry.lstat().st_mtime > older_than_s:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                    swept += 1
        return swept

    @contextmanager
    def lay_out(self, tree: Tree) -> Iterator[Path]:
        """A temporary folder with the files of `tree` (path -> sha256), linked, for reading only."""
        with tempfile.TemporaryDirectory(dir=self.incoming) as name:
            folder = Path(name)
            for path, sha256 in tree.items():
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._link(sha256, target)
            yield folder

    @contextmanager
    def copy_all_out(self, tree: Tree) -> Iterator[Path]:
        """As `lay_out`, for a store that this process may not write to: copies elsewhere, each hashed on the way."""
        with tempfile.TemporaryDirectory(prefix="graft-adapter-") as name:
            for path, sha256 in tree.items():
                self.copy_out(sha256, Path(name) / path)
            yield Path(name)

    def _link(self, sha256: str, target: Path) -> None:
        """A second name for a blob. Whoever stores the same bytes just now renames a new file over this one: link()
        then finds a file without a name and fails, though the blob's name never vanishes; so it is tried again."""
        while True:
            try:
                return os.link(self.path(sha256), target)
            except FileNotFoundError:
                if not self.has(sha256):
                    raise self._missing_error(sha256) from None


def _damaged_error(sha256: str, found: str) -> DamagedBlobError:
    return DamagedBlobError(
        f"Blob {sha256} is damaged on disk (now {found}): run `graft registry check`, restore a backup."
    )
