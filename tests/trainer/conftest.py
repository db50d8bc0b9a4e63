"""Small data as files."""

from pathlib import Path

import pytest

from graft.hub.base.manifest import record
from tests.conftest import tiny_base
from tests.trainer.cases import HELD_OUT, ROWS, write_rows


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rows(tmp_path / "train.jsonl", ROWS)


@pytest.fixture
def held_out(tmp_path) -> Path:
    return write_rows(tmp_path / "test.jsonl", HELD_OUT)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """A tiny base as `graft base import` leaves one."""
    folder = tmp_path_factory.mktemp("base")
    base = tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    record(folder, base.spec)
    return folder
