"""Folders written whole: all of the new files, or all of the old ones."""

import pytest
from safetensors import SafetensorError

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
