"""Small data as files."""

from pathlib import Path

import pytest

from tests.trainer.cases import HELD_OUT, ROWS, write_rows


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rows(tmp_path / "train.jsonl", ROWS)


@pytest.fixture
def held_out(tmp_path) -> Path:
    return write_rows(tmp_path / "test.jsonl", HELD_OUT)
