"""Small data for small bases."""

import json
from pathlib import Path

import pytest

ROWS = [
    {
        "prompt": f"{'ab' * (i % 4)}{'xyz'[i % 3]}?",
        "completion": " " + "xyz"[i % 3] * 2,
        "labels": [" xx", " yy", " zz"],
    }
    for i in range(12)
]
HELD_OUT = [
    {"prompt": f"c{letter}?", "completion": f" {letter * 2}", "labels": [" xx", " yy", " zz"]} for letter in "xyz"
]


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    return write_rows(tmp_path / "train.jsonl", ROWS)


@pytest.fixture
def held_out(tmp_path) -> Path:
    return write_rows(tmp_path / "test.jsonl", HELD_OUT)
