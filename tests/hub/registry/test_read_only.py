"""Reading needs no right to write, and waits for no writer."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app
from graft.server.adapters.names import AdapterNames

NOBODY = 65534
READER = """
import os, sys, tempfile
from pathlib import Path
from graft.hub.errors import GraftError
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
with tempfile.TemporaryDirectory() as folder:  # what is imported late may lie where nobody else may look
    check(Registry(folder + "/registry.db"))
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
path, out = Path(sys.argv[1]), sys.argv[2]
registry = Registry(path, create=False)
print("read-only", registry.read_only, flush=True)
print("problems", len(check(registry).problems), flush=True)
for line in sys.stdin:
    made = registry.pull("ann/news", out)
    print(made.title, registry.search(Query()).total, flush=True)
for attempt in (lambda: registry.create_repo("ann/mine"), lambda: registry.publish(out, "ann/mine"), lambda: collect(registry)):
    try:
        attempt()
    except Exception as error:
        print("refused", type(error).__name__, flush=True)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that another user can reach, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def protect(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)


def unprotect(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


class Reader:
    """Another process, of another user where that is possible, that reads the registry."""

    def __init__(self, path: Path, out: Path):
        out.mkdir()
        out.chmod(0o777)
        self.process = subprocess.Popen(
            [sys.executable, "-c", READER, str(path), str(out / "pulled")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.opened = [self._line(), self._line()]

    def pull(self) -> str:
        self.process.stdin.write("again\n")
        self.process.stdin.flush()
        return self._line()

    def end(self) -> list[str]:
        out, errors = self.process.communicate()
        assert not errors, errors
        return out.splitlines()

    def _line(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, self.process.stderr.read()
        return line


def made(place: Path, spec, adapter: Path) -> Registry:
    registry = Registry(place / "all" / "registry.db")
    registry.add_base(spec)
    registry.publish(adapter, "ann/news", message="one")
    return registry


def test_another_users_registry_is_read(place: Path, spec, adapter: Path) -> None:
    """Nobody has it open: SQLite's files beside it are gone, and can't be made."""
    registry = made(place, spec, adapter)
    registry.close()
    protect(place / "all")
    before = sorted(path.name for path in (place / "all").rglob("*"))
    reader = Reader(registry.path, place / "out")
    assert reader.opened == ["read-only True", "problems 0"] and reader.pull() == "one 1"
    refused = reader.end()
    assert len(refused) == 3 and all(line.startswith("refused") for line in refused)
    assert sorted(path.name for path in (place / "all").rglob("*")) == before
    unprotect(place / "all")


def test_what_its_owner_writes_meanwhile_is_seen(place: Path, spec, adapter: Path, lora_folder) -> None:
    """The reader began while nobody had it open; then the owner publishes, checkpoints and closes."""
    registry = made(place, spec, adapter)
    registry.close()
    if os.geteuid() != 0:
        pytest.skip("the reader has to be another user than the owner")
    reader = Reader(registry.path, place / "out")
    assert reader.opened == ["read-only True", "problems 0"] and reader.pull() == "one 1"
    for number, title in enumerate(("two", "three", "four")):
        registry.publish(lora_folder(place / title, seed=number + 1), "ann/news", message=title)
        if title == "three":
            registry.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert reader.pull() == f"{title} 1"
        if title == "two":
            registry.close()
            assert reader.pull() == "two 1"
    registry.publish(adapter, "ann/second")
    assert reader.pull() == "four 2"
    reader.end()
    registry.close()
    assert check(Registry(registry.path)).problems == ()  # nothing of another user's lies in the owner's way


def test_a_read_only_file_system(place: Path, spec, adapter: Path) -> None:
    registry = made(place, spec, adapter)
    registry.close()
    where = place / "mounted"
    where.mkdir()
    words = [["mount", "--bind", str(place / "all"), str(where)], ["mount", "-o", "remount,ro,bind", str(where)]]
    for command in words:
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount")
    try:
        there = Registry(where / "registry.db", create=False)
        assert there.read_only and check(there).problems == ()
        assert there.pull("ann/news", place / "pulled").title == "one"
        assert create_app(there).test_client().get("/ann/news").status_code == 200
        there.close()
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)


@pytest.fixture
def locked(registry: Registry, adapter: Path) -> Iterator[Registry]:
    """A registry that another connection is writing to, and goes on writing to."""
    registry.publish(adapter, "ann/news")
    create_app(registry)  # which makes its keys
    writer = sqlite3.connect(registry.path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE repos SET private = private")
    yield registry
    writer.close()


def quick(call: Callable[[], object]) -> object:
    started = time.monotonic()
    result = call()
    assert time.monotonic() - started < 5  # a writer would wait for half a minute
    return result


def test_a_locked_registry_is_opened_and_read(locked: Registry, tmp_path: Path) -> None:
    other = quick(lambda: Registry(locked.path, create=False))
    assert quick(lambda: other.pull("ann/news", tmp_path / "out"))
    assert quick(lambda: check(other).problems) == ()


def test_a_server_fetches_from_a_locked_registry(locked: Registry) -> None:
    names = AdapterNames("f" * 64, shelf=locked)
    with names.fetch(quick(lambda: names.locate("ann/news"))) as folder:
        assert (folder / "adapter_config.json").exists()


def test_a_hub_answers_while_its_registry_is_locked(locked: Registry) -> None:
    client = create_app(locked).test_client()
    for path in ("/", "/ann/news", "/ann/news/resolve/main/adapter_config.json", "/api/models/ann/news"):
        assert quick(lambda path=path: client.get(path)).status_code == 200


def test_downloads_that_could_not_be_counted_are_counted_later(locked: Registry) -> None:
    for _ in range(3):
        quick(lambda: locked.count_download("ann/news"))
    assert locked.repo("ann/news").downloads == 0


def test_downloads_are_counted_once_the_writer_is_done(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.publish(adapter, "ann/news")
    writer = sqlite3.connect(registry.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    registry.pull("ann/news", tmp_path / "a")
    writer.execute("ROLLBACK")
    registry.pull("ann/news", tmp_path / "b")
    assert registry.repo("ann/news").downloads == 2 and check(registry).problems == ()


def test_a_download_never_makes_a_registry(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")
    repo = registry.repo("ann/news")
    registry.close()
    registry.path.unlink()
    registry._downloads.count(repo.id)
    assert not registry.path.exists()
