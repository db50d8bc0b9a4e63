"""What is acknowledged outlives a power cut: bytes are flushed before they get their name, names before they are relied on.

A test can't cut the power, but it can see what was asked of the disk, and in which order.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from graft.hub.errors import GraftError
from graft.hub.registry.maintenance.backup import backup, restore
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage import folder_lock
from graft.hub.registry.storage.database import Database


class Disk:
    """What was flushed, named and committed, in order: ("fsync", inode), ("name", inode, folder's inode, path), ("commit",)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.asked: list[tuple] = []
        fsync, replace, link, execute = os.fsync, os.replace, os.link, Database.execute

        def seen_fsync(descriptor: int) -> None:
            fsync(descriptor)
            self.asked.append(("fsync", os.fstat(descriptor).st_ino))

        def seen_name(call: Callable[..., None]) -> Callable[..., None]:
            def named(source: Path, target: Path) -> None:
                call(source, target)
                place = Path(target)
                self.asked.append(("name", place.stat().st_ino, place.parent.stat().st_ino, place))

            return named

        def seen_execute(database: Database, sql: str, *rest: object) -> object:
            result = execute(database, sql, *rest)
            if sql == "COMMIT":
                self.asked.append(("commit",))
            return result

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "replace", seen_name(replace))
        monkeypatch.setattr(os, "link", seen_name(link))
        monkeypatch.setattr(Database, "execute", seen_execute)

    def names(self, under: Path) -> list[Path]:
        """What got a name under a folder, each proven to have been flushed before, and its folder after, ahead of the next commit."""
        found = []
        for at, entry in enumerate(self.asked):
            if entry[0] != "name" or under not in entry[3].parents or "tmp" in entry[3].parts[len(under.parts) :]:
                continue
            _, inode, folder, path = entry
            assert ("fsync", inode) in self.asked[:at], f"{path} was named before it was flushed"
            later = self.asked[at:]
            until = later.index(("commit",)) if ("commit",) in later else len(later)
            assert ("fsync", folder) in later[:until], f"the folder of {path} was not flushed"
            found.append(path)
        return found


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_blobs_are_flushed_before_the_commit_that_refers_to_them(
    registry: Registry, adapter: Path, tmp_path: Path, disk: Disk
) -> None:
    registry.publish(adapter, "ann/news")
    assert len(disk.names(registry.blobs.folder)) == 4
    assert registry.db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


def test_a_new_registry_is_flushed_before_it_counts(tmp_path: Path, disk: Disk) -> None:
    Registry(tmp_path / "new.db")
    assert [path.name for path in disk.names(tmp_path / "new.blobs")] == ["owner.json"]
    assert ("fsync", tmp_path.stat().st_ino) in disk.asked  # that the folder of blobs is there


def test_backup_and_restore_are_flushed_before_they_are_named(
    registry: Registry, adapter: Path, tmp_path: Path, disk: Disk
) -> None:
    registry.publish(adapter, "ann/news")
    backup(registry, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again" / "again.db")
    for folder, database in (("backup", "registry.db"), ("again", "again.db")):
        named = [path.name for path in disk.names(tmp_path / folder)]
        assert named[0] == "owner.json" and named[5] == database and len(set(named)) == 6


def test_a_pulled_adapter_is_flushed_before_it_is_named(
    registry: Registry, adapter: Path, tmp_path: Path, disk: Disk
) -> None:
    registry.publish(adapter, "ann/news")
    registry.pull("ann/news", tmp_path / "out")
    assert disk.names(tmp_path / "out")[-1].name == "adapter_model.safetensors"


def test_a_file_system_without_locks_is_said(registry: Registry, tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "flock", no_locks)
    with pytest.raises(GraftError, match="can't lock files"):
        backup(registry, tmp_path / "backup")
