"""What is kept in the cache is found again, and whatever is wrong with the cache costs time only."""

import os

import pytest

from graft.hub.machine import kept_values
from graft.hub.machine.kept_values import keep, recall


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_value_is_found_out_once():
    found = []
    for _ in range(2):
        assert kept_values.recall_or_find("kind", "key", lambda: found.append(1) or {"a": [1.5, None]}) == {
            "a": [1.5, None]
        }
    assert found == [1] and recall("kind", "other") is None


@pytest.mark.parametrize("text", ["", '{"a": [1.', '"c0ff', "\udcff"])
def test_half_a_value_is_none(cache, text):
    keep("kind", "key", {"a": [1.5]})
    (file,) = (cache / "kind").iterdir()
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert recall("kind", "key") is None


def test_what_can_not_be_kept_leaves_nothing_behind(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    keep("kind", "key", 7)
    assert recall("kind", "key") is None and not list((cache / "kind").iterdir())


def test_a_cache_that_is_a_file_is_as_good_as_none(cache):
    cache.write_text("in the way")
    keep("kind", "key", 7)
    assert recall("kind", "key") is None
