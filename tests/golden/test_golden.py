"""Identities that must never change by accident: what is stored under them is out in the world.

`golden.json` holds them as commit d45ab6d computed them. A test here that fails says that adapters lose their name,
bases their fingerprint or registries their history: mend the code. Only where the change is meant,
`python -m tests.golden.made` writes the file anew, and docs/decisions.md says why.
"""

import base64
import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from graft.hub.adapters.methods import METHODS
from graft.hub.adapters.methods.method import LATER
from graft.hub.base.model import Base
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from tests.conftest import FAMILIES, tiny_tokenizer
from tests.golden import made
from tests.hub.adapters.methods.cases import VARIANTS

GOLDEN = json.loads(made.GOLDEN.read_text())


def test_nothing_under_test_is_without_a_golden_value():
    assert GOLDEN["fingerprints"].keys() == FAMILIES.keys()
    by_family = {f"{family}/{variant}" for family in made.DIGEST_FAMILIES for variant in VARIANTS}
    assert GOLDEN["digests"].keys() == by_family | made.FOREIGN.keys()


def test_fingerprints():
    assert made.fingerprints() == GOLDEN["fingerprints"]


def test_a_bfloat16_copy_bears_the_golden_fingerprint():
    model = made.base("llama").model.to(torch.bfloat16)
    assert Base(model, tiny_tokenizer()).spec.fingerprint == GOLDEN["fingerprints"]["llama"]


def test_digests():
    found = made.digests()
    assert {name: digest for name, digest in found.items() if digest != GOLDEN["digests"][name]} == {}


def test_a_new_field_at_its_default_is_in_no_digest():
    """Whoever adds a field to a config marks it LATER (methods/method.py), or every adapter of that method loses its name."""
    assert made.hashed_fields() == GOLDEN["fields"]
    lora = METHODS["lora"]

    @dataclass(frozen=True)
    class Newer(lora.Config):
        momentum: float = field(default=0.5, metadata=LATER)

    same, other = (lora.identity(Newer(r=2, momentum=momentum)) for momentum in (0.5, 0.25))
    assert same == lora.identity(lora.Config(r=2)) != other
    assert other["momentum"] == 0.25


def test_hashes_of_data():
    assert made.data_hashes() == GOLDEN["data"]


def test_commit_ids_of_a_registry_made_now(tmp_path):
    assert made.summary(made.registry(tmp_path, made.Clock())) == GOLDEN["registry"]


@pytest.fixture
def kept(tmp_path: Path) -> Registry:
    """The registry that d45ab6d left, opened (and so migrated) by the code of today."""
    connection = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    connection.executescript(made.DUMP.read_text())
    connection.close()
    for name, text in json.loads(made.BLOBS.read_text()).items():
        path = tmp_path / "registry.blobs" / name[:2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(text))
    return Registry(tmp_path / "registry.db", create=False)


def test_a_kept_registry_is_sound_and_says_what_it_said(kept):
    report = check(kept)
    assert report.problems == ()
    assert report.revisions == 6
    assert made.summary(kept) == GOLDEN["registry"]


def test_a_kept_registry_is_listed_and_ranked(kept):
    page = kept.search(Query(task="topics"))
    assert [(entry.name, entry.base, entry.score) for entry in page.entries] == [
        ("bob/new-name", "golden/small", None),
        ("bob/local", "golden/small", None),
        ("ann/topics", "golden/small", 1.0),
    ]
    assert (
        next(entry.name for entry in kept.search(Query(text="money", task="topics", sort="score")).entries)
        == "ann/topics"
    )
    standings = kept.leaderboard("topics")
    assert [(found.rank, found.evaluation.value) for found in standings] == [(1, 1.0), (2, 2 / 3), (0, 0.5)]
    assert kept.task_data("topics") == made.DATA


@pytest.mark.parametrize(
    "name", ["ann/topics", "ann/topics@v1", "ann/topics@production", "bob/old-name", "task:topics"]
)
def test_a_kept_registry_is_pulled(kept, tmp_path, name):
    revision = kept.pull(name, tmp_path / "pulled")
    found = made.inspect_artifact(tmp_path / "pulled", made.small_spec())
    assert found.digest == revision.digest


def test_a_kept_registry_takes_new_commits(kept, tmp_path):
    head = kept.resolve("ann/topics")
    same = kept.publish(made.small_folder(tmp_path / "2", 2, metric=made.CLAIM), "ann/topics", user="ann")
    assert same == head  # the bytes of then are the bytes of now: nothing to commit
    newer = kept.publish(made.small_folder(tmp_path / "6", 6), "ann/topics", user="ann")
    assert newer.parent == head.id
    assert check(kept).problems == ()
