"""Places where graft is tried: disks that are full, folders with awkward names, small machines."""

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from graft.hub.base.manifest import record
from graft.hub.cli.main import main
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.trainer.cases import HELD_OUT, ROWS, write_rows

DISK_KIB = 1024


@dataclass(frozen=True)
class Place:
    """A folder with a base (`base`), one without its manifest (`plain`), an adapter (`lora`) and data."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def furnish(folder: Path) -> Place:
    base = tiny_base("llama")
    for name in ("base", "plain"):
        base.model.save_pretrained(folder / name)
        base.tokenizer.save_pretrained(folder / name)
        (folder / name / "model.safetensors").chmod(0o644)
    record(folder / "base", base.spec)
    write_folder(folder / "lora", "lora", base)
    write_rows(folder / "train.jsonl", ROWS)
    write_rows(folder / "test.jsonl", HELD_OUT)
    return Place(folder)


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """One whose path has spaces and letters beyond ASCII, and that every user of this machine may read."""
    top = Path(tempfile.mkdtemp(prefix="graft Prüfung "))
    top.chmod(0o755)
    try:
        yield furnish(top)
    finally:
        shutil.rmtree(top)


@dataclass(frozen=True)
class Disk:
    """A small disk of its own."""

    folder: Path

    def leave(self, left: int) -> None:
        """Empty it, then fill it up to `left` bytes."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.fill(left)

    def fill(self, left: int) -> None:
        filler = self.folder / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(shutil.disk_usage(self.folder).free - left))

    def found(self) -> list[str]:
        """Files that somebody else put there."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.folder)) for path in files if path.name != "filler")


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs a disk of its own, and `mount -t tmpfs` says: {mounted.stderr.strip()}")
    try:
        assert os.path.ismount(folder)  # or the machine's own would be filled
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def files_end_at(limit: int) -> Iterator[None]:
    """As on a disk that others fill meanwhile: it looks empty, and no file gets longer than `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def graft(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env=environment)


def refused(result: Result, *said: str) -> None:
    """It ended with one sentence of ours that says all of `said`, and with no traceback."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    last = result.output.strip().splitlines()[-1]
    assert result.exit_code in (1, 2) and last.lower().startswith("error: "), result.output
    for words in said:
        assert words in last, result.output
