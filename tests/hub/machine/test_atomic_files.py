"""Folders written whole: all of the new files, or all of the old ones."""

import errno
import threading
import time

import pytest
from safetensors import SafetensorError

from graft.hub.errors import ConflictError
from graft.hub.machine import atomic_files
from graft.hub.machine.atomic_files import write_folder_whole


def write(folder, **files):
    with write_folder_whole(folder, last=["weights"]) as staging:
        for name, text in files.items():
            (staging / name).write_text(text)


def test_what_was_there_beside_stays(tmp_path):
    write(tmp_path / "a", config="old", weights="old")
    (tmp_path / "a" / "notes").write_text("mine")
    write(tmp_path / "a", config="new", weights="new")
    assert {path.name: path.read_text() for path in (tmp_path / "a").iterdir()} == {
        "config": "new", "weights": "new", "notes": "mine",
    }  # fmt: skip


def test_a_failure_leaves_no_trace(tmp_path):
    write(tmp_path / "old", config="old", weights="old")
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"), write_folder_whole(tmp_path / name) as staging:
            (staging / "config").write_text("new")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert not (tmp_path / "new").exists()
    assert {path.name: path.read_text() for path in (tmp_path / "old").iterdir()} == {"config": "old", "weights": "old"}


def test_a_crash_while_files_move_leaves_no_mixture(tmp_path, monkeypatch):
    write(tmp_path / "a", config="old", weights="old")

    def dies(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", config="new", weights="new")
    assert not (tmp_path / "a" / "weights").exists()


def test_writers_of_one_folder_take_turns(tmp_path, monkeypatch):
    """Two pulls into one folder: the second one's staging was swept away by the first, or the other way about."""
    folder, inside, go_on = tmp_path / "a", threading.Event(), threading.Event()

    def slowly() -> None:
        with write_folder_whole(folder, last=["weights"]) as staging:
            (staging / "config").write_text("first")
            inside.set()
            go_on.wait(10)
            (staging / "weights").write_text("first")

    first = threading.Thread(target=slowly)
    first.start()
    assert inside.wait(10)
    with monkeypatch.context() as patient:
        patient.setattr(atomic_files, "WAIT_S", 0.1)
        with pytest.raises(ConflictError, match="Another process writes to"):
            write(folder, config="second", weights="second")
    second = threading.Thread(target=write, args=(folder,), kwargs={"config": "second", "weights": "second"})
    second.start()
    go_on.set()
    first.join(10)
    second.join(10)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config": "second", "weights": "second"}


def test_who_waits_for_a_folder_that_is_taken_away_makes_it_again(tmp_path):
    folder, inside = tmp_path / "a", threading.Event()

    def fails() -> None:
        with pytest.raises(OSError, match="full"), write_folder_whole(folder):
            inside.set()
            time.sleep(0.3)
            raise OSError("full")

    first = threading.Thread(target=fails)
    first.start()
    assert inside.wait(10)
    write(folder, config="second", weights="second")
    first.join(10)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config": "second", "weights": "second"}


def test_a_file_system_without_locks_is_written_to(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    write(tmp_path / "a", config="new", weights="new")
    assert (tmp_path / "a" / "weights").read_text() == "new"
