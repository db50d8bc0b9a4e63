"""Every registry has its own folder of blobs: what one does not know must never be another's file."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graft.hub.errors import ConflictError
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage import ownership
from graft.hub.registry.storage.ownership import OWNER_FILE, read_owner, registry_id


def made(path: Path, adapter: Path) -> Registry:
    registry = Registry(path)
    registry.publish(adapter, "ann/news")
    registry.close()
    return registry


def forget_owner(registry: Registry) -> None:
    """As graft before 0.1 left it."""
    registry.db.execute("DELETE FROM settings WHERE key = 'registry.id'")
    registry.close()
    (registry.blobs.folder / OWNER_FILE).unlink(missing_ok=True)


def test_a_registry_and_its_folder_name_each_other(registry: Registry) -> None:
    owner = read_owner(registry.blobs.folder)
    assert owner is not None and owner.id == registry_id(registry.db) and owner.file == "registry.db"


@pytest.mark.parametrize("other", ["team.prod", "team", "team.sqlite", "team.db"])
def test_a_second_registry_may_not_use_the_folder_of_another(tmp_path: Path, adapter: Path, other: str) -> None:
    made(tmp_path / "team.dev", adapter)
    with pytest.raises(ConflictError, match=r"holds those of .*team\.dev: give each registry a name of its own"):
        Registry(tmp_path / other)
    assert not (tmp_path / other).exists()
    assert check(Registry(tmp_path / "team.dev")).problems == ()


@pytest.mark.parametrize("with_id", [True, False])
def test_a_copy_of_the_database_beside_the_same_folder_is_refused(tmp_path: Path, adapter: Path, with_id: bool) -> None:
    first = made(tmp_path / "team.db", adapter)
    if not with_id:
        forget_owner(first)
    shutil.copy(tmp_path / "team.db", tmp_path / "team.sqlite")
    if with_id:
        Registry(tmp_path / "team.db").close()
        with pytest.raises(ConflictError, match=r"holds those of .*team\.db"):
            Registry(tmp_path / "team.sqlite")
        return
    for name in ("team.db", "team.sqlite"):  # nobody knows whose the files are: neither may collect them
        with pytest.raises(ConflictError, match="holds those of"):
            Registry(tmp_path / name)
    shutil.copytree(tmp_path / "team.blobs", tmp_path / "mine.blobs")  # as the message says
    (tmp_path / "team.sqlite").rename(tmp_path / "mine.db")
    for name in ("team.db", "mine.db"):
        assert check(Registry(tmp_path / name)).problems == ()


def test_a_copied_database_beside_the_files_of_another_registry_is_refused(tmp_path: Path, adapter: Path) -> None:
    made(tmp_path / "a.db", adapter)
    made(tmp_path / "b.db", adapter)
    shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    with pytest.raises(ConflictError, match=r"b\.blobs holds the files of another registry than .*put the files"):
        Registry(tmp_path / "b.db")


def test_a_database_without_its_folder_is_refused(tmp_path: Path, adapter: Path) -> None:
    made(tmp_path / "a.db", adapter)
    shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    with pytest.raises(ConflictError, match=r"b\.blobs holds none of the files of .*b\.db: move them there"):
        Registry(tmp_path / "b.db")


def test_a_whole_copy_and_a_renamed_registry_open(tmp_path: Path, adapter: Path) -> None:
    made(tmp_path / "a.db", adapter)
    shutil.copy(tmp_path / "a.db", tmp_path / "b.db")
    shutil.copytree(tmp_path / "a.blobs", tmp_path / "b.blobs")
    copy = Registry(tmp_path / "b.db")
    copy.delete_repo("ann/news")
    assert collect(copy, grace_s=0).blobs == 4
    copy.close()
    assert check(Registry(tmp_path / "a.db")).problems == ()
    for name in ("db", "blobs"):
        (tmp_path / f"b.{name}").rename(tmp_path / f"c.{name}")
    assert check(Registry(tmp_path / "c.db")).problems == ()


def test_a_new_registry_takes_no_files_that_it_does_not_know(tmp_path: Path, adapter: Path) -> None:
    first = made(tmp_path / "team.db", adapter)
    kept = sorted(first.blobs.names())
    (tmp_path / "team.db").rename(tmp_path / "elsewhere")
    with pytest.raises(ConflictError, match=r"registry that is not there any more: put its database back"):
        Registry(tmp_path / "team.db")
    assert sorted(first.blobs.names()) == kept and not (tmp_path / "team.db").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "team.db")
    assert check(Registry(tmp_path / "team.db")).problems == ()


def test_an_old_registry_adopts_its_folder_when_it_is_first_opened(tmp_path: Path, adapter: Path) -> None:
    forget_owner(made(tmp_path / "old.db", adapter))
    registry = Registry(tmp_path / "old.db")
    assert read_owner(registry.blobs.folder).id == registry_id(registry.db)
    with pytest.raises(ConflictError):
        Registry(tmp_path / "old.prod")


def test_two_old_registries_in_one_folder_are_both_refused(tmp_path: Path, adapter: Path, lora_folder) -> None:
    first = made(tmp_path / "team.db", adapter)
    forget_owner(first)
    elsewhere = made(tmp_path / "apart" / "x.db", lora_folder(tmp_path / "next", seed=1))
    forget_owner(elsewhere)
    (tmp_path / "apart" / "x.db").rename(tmp_path / "team.prod")
    shutil.copytree(elsewhere.blobs.folder, first.blobs.folder, dirs_exist_ok=True)
    for name in ("team.db", "team.prod"):
        with pytest.raises(ConflictError, match="give each registry a name of its own"):
            Registry(tmp_path / name)


def test_an_old_registry_with_a_copy_of_the_folder_that_another_owns_gets_its_own_id(
    tmp_path: Path, adapter: Path
) -> None:
    forget_owner(made(tmp_path / "apart" / "team.prod", adapter))
    first = made(tmp_path / "team.dev", adapter)
    (tmp_path / "apart" / "team.prod").rename(tmp_path / "team.prod")
    with pytest.raises(ConflictError, match="a copy of that folder beside it"):
        Registry(tmp_path / "team.prod")
    shutil.copytree(tmp_path / "team.blobs", tmp_path / "prod.blobs")
    (tmp_path / "team.prod").rename(tmp_path / "prod.db")
    assert registry_id(Registry(tmp_path / "prod.db").db) != registry_id(first.db)
    assert read_owner(first.blobs.folder).file == "team.dev"


def test_another_programs_database_of_that_name_is_no_registry(tmp_path: Path, adapter: Path) -> None:
    other = sqlite3.connect(tmp_path / "team.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.close()
    (tmp_path / "team.txt").write_text("notes")
    assert made(tmp_path / "team.db", adapter).resolve("ann/news")


def test_a_crash_between_folder_and_database_is_mended(tmp_path: Path, adapter: Path) -> None:
    registry = made(tmp_path / "a.db", adapter)
    owner = read_owner(registry.blobs.folder)
    registry.db.execute("DELETE FROM settings WHERE key = 'registry.id'")
    registry.close()
    assert registry_id(Registry(tmp_path / "a.db").db) == owner.id
    (registry.blobs.folder / OWNER_FILE).unlink()
    Registry(tmp_path / "a.db")
    assert read_owner(registry.blobs.folder) == owner


def test_an_owner_that_cannot_be_read_is_said(tmp_path: Path, adapter: Path) -> None:
    registry = made(tmp_path / "a.db", adapter)
    for text in ("", "[]", json.dumps({"id": "x"})):
        (registry.blobs.folder / OWNER_FILE).unlink()
        (registry.blobs.folder / OWNER_FILE).write_text(text)
        with pytest.raises(ConflictError, match=r"owner\.json can't be read"):
            Registry(tmp_path / "a.db")


def test_a_database_that_is_called_like_its_folder(tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match=r"ends in \.db"):
        Registry(tmp_path / "a.blobs")


OPENER = """
import sys, time
from graft.hub.registry.registry import Registry
while time.time() < float(sys.argv[2]):
    pass
registry = Registry(sys.argv[1])
print(registry.db.execute("SELECT value FROM settings WHERE key = 'registry.id'").fetchone()[0])
"""


@pytest.mark.parametrize("old", [False, True])
def test_processes_that_open_a_registry_at_once_agree(tmp_path: Path, adapter: Path, old: bool) -> None:
    if old:
        forget_owner(made(tmp_path / "a.db", adapter))
    start = str(time.time() + 3)
    command = [sys.executable, "-c", OPENER, str(tmp_path / "a.db"), start]
    openers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ids = {opener.communicate()[0].strip() for opener in openers}
    assert len(ids) == 1 and ids == {read_owner(tmp_path / "a.blobs").id}


def test_a_folder_that_becomes_another_s_while_it_is_looked_at_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked before either had written: the second must not write over the first's mark."""
    looked = ownership._require_free

    def look_and_be_late(path: Path, *rest: object) -> None:
        looked(path, *rest)
        monkeypatch.setattr(ownership, "_require_free", looked)
        Registry(path.with_name("team.prod"))

    monkeypatch.setattr(ownership, "_require_free", look_and_be_late)
    with pytest.raises(ConflictError):
        Registry(tmp_path / "team.dev")
    assert read_owner(tmp_path / "team.blobs").file == "team.prod"


def test_of_two_registries_that_want_a_folder_at_once_one_gets_it(tmp_path: Path) -> None:
    start = str(time.time() + 3)
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(tmp_path / f"team.{name}"), start],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("dev", "prod")
    ]
    said = [opener.communicate() for opener in openers]
    [winner] = [out.strip() for out, _ in said if out]
    [refused] = [errors for out, errors in said if not out]
    assert read_owner(tmp_path / "team.blobs").id == winner and "ConflictError" in refused
