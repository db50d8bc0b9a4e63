"""Output folders are proven writable, and never written over unasked."""

import os
from pathlib import Path

import pytest

from graft.hub.errors import GraftError
from graft.hub.machine.output_folder import claim


def test_a_claim_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    claim(tmp_path / "there")
    claim(tmp_path / "a/b/c")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_what_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, words in ((tmp_path, "not empty"), (tmp_path / "file", "is a file"), (tmp_path / "file/x", "Nothing")):
        with pytest.raises(GraftError, match=words):
            claim(folder)


def test_where_nothing_can_be_written_is_refused() -> None:
    with pytest.raises(GraftError, match="Nothing can be written to /proc/graft/x"):
        claim(Path("/proc/graft/x"))


def test_a_folder_that_takes_names_but_no_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_RDWR)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: os.fdopen(full, "r+b", buffering=0))
    with pytest.raises(GraftError, match="No space left"):
        claim(tmp_path / "out")
    assert not (tmp_path / "out").exists()
