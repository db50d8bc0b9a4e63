"""The data in examples/: readable, sized as its README says, and no prompt in both halves."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from graft.hub.evaluation.task_data import load_examples

EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = re.findall(
    r"^\| `(\w+)/` \|.*\| (\d+) \| (\d+) \| (\w+) \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE
)


def rows(name: str, part: str) -> list[dict]:
    return [json.loads(line) for line in (EXAMPLES / name / f"{part}.jsonl").read_text().splitlines()]


def test_the_table_names_every_folder():
    assert {row[0] for row in TABLE} == {path.name for path in EXAMPLES.iterdir() if path.is_dir()}


@pytest.mark.parametrize("name, train, test, metric", TABLE)
def test_halves(name, train, test, metric):
    halves = {part: rows(name, part) for part in ("train", "test")}
    assert (len(halves["train"]), len(halves["test"])) == (int(train), int(test))
    prompts = [row["prompt"] for half in halves.values() for row in half]
    assert len(set(prompts)) == len(prompts)
    for part, half in halves.items():
        load_examples(EXAMPLES / name / f"{part}.jsonl")
        assert all(row["completion"].startswith(" ") for row in half)


def test_labels_are_known_and_even():
    for part, fewest in (("train", 25), ("test", 10)):
        found = Counter(row["completion"] for row in rows("tickets", part))
        assert set(found) == set(rows("tickets", part)[0]["labels"]) and min(found.values()) >= fewest, found


def test_extractions_are_json_of_one_shape():
    for part in ("train", "test"):
        for row in rows("events", part):
            found = json.loads(row["completion"])
            assert list(found) == ["event", "day", "time", "place"]
            assert found["day"] in row["prompt"] and (
                found["time"] is None or re.fullmatch(r"\d\d:\d\d", found["time"])
            )
