"""A backup can be restored, or it is none; a registry is restored, or nothing is there."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from graft.hub.cli.main import main
from graft.hub.errors import ConflictError, GraftError, NotFoundError
from graft.hub.registry.maintenance import backup as backups
from graft.hub.registry.maintenance.backup import UnsoundError, backup, restore
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.folder_lock import share_folder
from graft.hub.registry.storage.ownership import registry_id


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def graft(*words: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "graft.hub.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def saved(registry: Registry, adapter: Path, tmp_path: Path) -> Path:
    """A good backup of a registry with one adapter."""
    registry.publish(adapter, "ann/news")
    backup(registry, tmp_path / "backup")
    return tmp_path / "backup"


def test_the_same_registry_comes_back(registry: Registry, saved: Path, tmp_path: Path) -> None:
    report = restore(saved, tmp_path / "again" / "registry.db")
    again = Registry(tmp_path / "again" / "registry.db")
    assert again.resolve("ann/news") == registry.resolve("ann/news") and report.problems == () == check(again).problems
    assert report.blobs == 4 and report.bytes_per_s > 0


def test_garbage_is_not_collected_while_a_backup_copies(registry: Registry, saved: Path, tmp_path: Path) -> None:
    registry.delete_repo("ann/news")
    with share_folder(registry.blobs.folder), pytest.raises(ConflictError, match="A backup or a check of"):
        collect(registry, grace_s=0)
    assert collect(registry, grace_s=0).blobs == 4


def test_what_is_collected_after_the_snapshot_is_in_the_backup(
    registry: Registry, adapter: Path, tmp_path: Path, monkeypatch
) -> None:
    """The repo is deleted, and `gc` tried, just after the snapshot: the backup is of the moment before."""
    registry.publish(adapter, "ann/news")
    copy, refused = backups._copy, []

    def meanwhile(*arguments: object) -> object:
        registry.delete_repo("ann/news")
        with pytest.raises(ConflictError) as caught:
            collect(registry, grace_s=0)
        refused.append(caught)
        return copy(*arguments)

    monkeypatch.setattr(backups, "_copy", meanwhile)
    backup(registry, tmp_path / "backup")
    monkeypatch.undo()
    assert refused and restore(tmp_path / "backup", tmp_path / "then.db").problems == ()
    assert Registry(tmp_path / "then.db").resolve("ann/news")


def test_an_unsound_backup_keeps_the_last_good_one_and_fails(
    registry: Registry, saved: Path, tmp_path: Path, lora_folder
) -> None:
    before = (saved / "registry.db").read_bytes()
    made = registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/next")
    sha256 = registry.tree(made.id)["adapter_model.safetensors"]
    registry.blobs.path(sha256).unlink()
    done = graft("registry", "backup", saved, "--registry", registry.path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"Blob {sha256} is missing. It belongs to ann/next: adapter_model.safetensors" in done.stderr
    assert (saved / "registry.db").read_bytes() == before and not (saved / "registry.db.new").exists()
    restore(saved, tmp_path / "then.db")
    with pytest.raises(UnsoundError):
        backup(registry, tmp_path / "first")
    with pytest.raises(NotFoundError, match="no backup"):
        restore(tmp_path / "first", tmp_path / "no.db")


def test_a_damaged_blob_of_the_backup_is_copied_again(registry: Registry, saved: Path) -> None:
    victim = next(path for path in (saved / "registry.blobs").rglob("*") if len(path.name) == 64)
    victim.chmod(0o600)
    victim.write_bytes(b"rotten")
    assert backup(registry, saved).problems == ()


def test_a_damaged_backup_is_refused_and_leaves_nothing(registry: Registry, saved: Path, tmp_path: Path) -> None:
    victim = next(path for path in (saved / "registry.blobs").rglob("*") if len(path.name) == 64)
    kept = victim.read_bytes()
    victim.chmod(0o600)
    for damage in (lambda: victim.write_bytes(kept[:-1] + b"?"), victim.unlink):
        damage()
        with pytest.raises(UnsoundError, match="not sound"):
            restore(saved, tmp_path / "new" / "registry.db")
        assert contents(tmp_path / "new") == {}
    victim.write_bytes(kept)
    assert restore(saved, tmp_path / "new" / "registry.db").problems == ()


def test_a_backup_without_its_files_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.rmtree(saved / "registry.blobs")
    with pytest.raises(UnsoundError, match=r"not sound \(4 problems\)"):
        restore(saved, tmp_path / "new" / "registry.db")
    assert contents(tmp_path / "new") == {}


def test_a_backup_whose_tables_are_damaged_is_refused(registry: Registry, saved: Path, tmp_path: Path) -> None:
    database = saved / "registry.db"
    sound = database.read_bytes()
    for spoilt in (b"not a database", sound[:100] + b"\xff" * 3000 + sound[3100:]):
        database.write_bytes(spoilt)
        with pytest.raises(GraftError):
            restore(saved, tmp_path / "new" / "registry.db")
        assert contents(tmp_path / "new") == {}
        done = graft("registry", "restore", saved, "--registry", tmp_path / "new" / "registry.db")
        assert done.returncode == 1 and "Traceback" not in done.stderr


def test_the_backup_of_another_registry_is_not_overwritten(saved: Path, tmp_path: Path, adapter: Path) -> None:
    before = contents(saved)
    other = Registry(tmp_path / "other.db")
    other.publish(adapter, "bob/mine")
    with pytest.raises(ConflictError, match="backup of another registry"):
        backup(other, saved)
    assert contents(saved) == before


def test_a_later_backup_is_not_overwritten_by_an_earlier_state(
    registry: Registry, saved: Path, tmp_path: Path, lora_folder
) -> None:
    restore(saved, tmp_path / "then.db")
    registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/next")
    backup(registry, saved)
    with pytest.raises(ConflictError, match="later state of this one"):
        backup(Registry(tmp_path / "then.db"), saved)
    assert backup(registry, saved).problems == ()
    restore(saved, tmp_path / "now.db")
    assert backup(Registry(tmp_path / "now.db"), saved).problems == ()  # what was lost and came back goes on there


def test_a_registry_is_not_restored_over_another(
    registry: Registry, saved: Path, tmp_path: Path, adapter: Path
) -> None:
    with pytest.raises(ConflictError, match="exists: move it away first"):
        restore(saved, registry.path)
    other = Registry(tmp_path / "other.db")
    other.publish(adapter, "bob/mine")
    other.close()
    (tmp_path / "other.db").rename(tmp_path / "kept")
    before = contents(other.blobs.folder)
    with pytest.raises(ConflictError, match=r"files of a registry whose database was at .*move it away"):
        restore(saved, tmp_path / "other.db")
    assert contents(other.blobs.folder) == before
    (tmp_path / "lone.db-wal").write_bytes(b"changes")
    with pytest.raises(ConflictError, match="may hold its last changes"):
        restore(saved, tmp_path / "lone.db")


def test_a_restored_registry_is_another_than_the_one_that_was_backed_up(
    registry: Registry, saved: Path, tmp_path: Path, lora_folder
) -> None:
    """Each has files that the other does not know: neither may come to the other's folder."""
    restore(saved, tmp_path / "then.db")
    again = Registry(tmp_path / "then.db")
    assert registry_id(again.db) != registry_id(registry.db)
    for each, name in ((registry, "ann/one"), (again, "ann/two")):
        each.publish(lora_folder(tmp_path / name, seed=len(name)), name)
        each.close()
    shutil.copy(registry.path, again.path)
    with pytest.raises(ConflictError, match="files of another registry"):
        Registry(again.path)


def test_an_interrupted_restore_is_gone_on_with(registry: Registry, saved: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(backups, "_put_in_place", lambda *_: os._exit(9))
    pid = os.fork()
    if pid == 0:
        restore(saved, tmp_path / "then.db")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    monkeypatch.undo()
    with pytest.raises(ConflictError, match="files of a registry that is not there"):
        Registry(tmp_path / "then.db")
    assert restore(saved, tmp_path / "then.db").problems == ()
    assert check(Registry(tmp_path / "then.db")).problems == ()


def test_a_registry_is_not_backed_up_into_itself(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "ann/news")
    before = contents(registry.blobs.folder)
    with pytest.raises(ConflictError, match="where the registry itself lies"):
        backup(registry, registry.path.parent)
    assert contents(registry.blobs.folder) == before and check(registry).problems == ()


def test_a_backup_is_not_collected_while_it_is_restored(
    registry: Registry, saved: Path, tmp_path: Path, monkeypatch
) -> None:
    copy = backups._copy

    def meanwhile(*arguments: object) -> object:
        with pytest.raises(ConflictError, match="or one is being restored"):
            backup(registry, saved)
        return copy(*arguments)

    monkeypatch.setattr(backups, "_copy", meanwhile)
    assert restore(saved, tmp_path / "then.db").problems == ()


def test_what_only_earlier_backups_needed_is_collected_there(
    registry: Registry, saved: Path, tmp_path: Path, lora_folder
) -> None:
    registry.delete_repo("ann/news")
    registry.publish(lora_folder(tmp_path / "next", seed=1), "ann/next")
    collect(registry, grace_s=0)
    assert backup(registry, saved).unreferred > 0
    kept = Registry(saved / "registry.db")
    assert collect(kept, grace_s=0).blobs > 0
    assert check(kept).problems == () and check(kept).unreferred == 0
    kept.close()
    assert backup(registry, saved).unreferred == 0
    assert restore(saved, tmp_path / "then.db").problems == ()


def test_two_backups_to_one_folder_wait_for_each_other(registry: Registry, saved: Path, monkeypatch) -> None:
    copy, inside, go = backups._copy, threading.Event(), threading.Event()

    def slowly(*arguments: object) -> object:
        inside.set()
        assert go.wait(20)
        return copy(*arguments)

    monkeypatch.setattr(backups, "_copy", slowly)
    thread = threading.Thread(target=backup, args=(registry, saved))
    thread.start()
    assert inside.wait(20)
    with pytest.raises(ConflictError, match="Another backup is being written"):
        backup(registry, saved)
    go.set()
    thread.join()


def test_a_backup_of_before_is_restored_and_added_to(registry: Registry, saved: Path, tmp_path: Path) -> None:
    """Graft before 0.1 gave neither registries nor folders an id."""
    for database, folder in ((registry.path, registry.blobs.folder), (saved / "registry.db", saved / "registry.blobs")):
        old = sqlite3.connect(database)
        old.execute("DELETE FROM settings WHERE key = 'registry.id'")
        old.commit()
        old.close()
        (folder / "owner.json").unlink()
    restore(saved, tmp_path / "then.db")
    assert check(Registry(tmp_path / "then.db")).problems == ()
    assert backup(Registry(registry.path), saved).problems == ()
    assert json.loads((saved / "registry.blobs" / "owner.json").read_text())["file"] == "registry.db"


def test_the_commands_say_what_they_read(registry: Registry, saved: Path) -> None:
    report = json.loads(graft("registry", "check", "--json", "--registry", registry.path).stdout)
    assert report["bytes_per_s"] > 0 and report["problems"] == []
    for grace in ("nan", "-5", "1e20", "soon"):
        done = CliRunner().invoke(main, ["registry", "gc", "--grace", grace, "--registry", str(registry.path)])
        assert done.exit_code == 2 and "is no span of time" in done.stderr
    for grace in ("0", "0.5", "86400", "2h", "30d"):
        assert graft("registry", "gc", "--grace", grace, "--registry", registry.path).returncode == 0
