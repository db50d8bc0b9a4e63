"""A full disk under what is written: an output, the cache, a registry."""

from graft.hub.machine.kept_values import keep, recall
from graft.hub.registry.registry import Registry
from tests.field.conftest import files_end_at, graft, refused

FAST = ("--steps", 2, "--dtype", "float32")


def test_an_import_finds_it_before_it_writes_and_while_it_does(place, disk, tmp_path):
    words = ("base", "import", place / "plain", disk.folder / "new", "--id", "a/b", "--dtype", "float32")
    disk.leave(0)
    refused(graft(*words), "Nothing can be written to", "Choose another folder")
    disk.leave(80 << 10)  # the weights have 98 KiB
    refused(graft(*words), "takes 1 MiB there", "Make room")
    disk.leave(1 << 20)
    with files_end_at(70_000):
        refused(graft(*words), "can't be written", "Make room")
    assert disk.found() == []
    assert graft(*words).exit_code == 0


def test_a_training_finds_it_before_it_begins_and_keeps_nothing_half_done(place, disk, tmp_path):
    words = ("train", "--base", place / "base", "--method", "lora", "--data", place / "train.jsonl", *FAST)
    disk.leave(0)
    refused(graft(*words, "--out", disk.folder / "out"), "Nothing can be written to")
    disk.leave(80 << 10)
    refused(graft(*words, "--out", disk.folder / "out"), "has 80.00 KiB left", "Make room")
    with files_end_at(70_000):  # the checkpoint is longer
        refused(graft(*words, "--out", tmp_path / "out", "--checkpoint-every", 1), "File too large")
    assert disk.found() == [] and not (tmp_path / "out").exists()


def test_a_full_cache_costs_time_and_nothing_else(place, disk, tmp_path, monkeypatch):
    disk.leave(0)
    monkeypatch.setenv("GRAFT_CACHE", str(disk.folder))
    words = ("train", "--base", place / "base", "--method", "lora", "--data", place / "train.jsonl", *FAST)
    done = graft(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    keep("kind", "key", "text" * 10_000)
    assert recall("kind", "key") is None and disk.found() == []


def test_a_registry_says_so_and_is_what_it_was(place, disk):
    registry = disk.folder / "registry.db"
    publish = ("publish", place / "lora", "me/adapter", "--registry", registry)
    task = ("task", "add", "letters", "--metric", "accuracy", "--data", place / "test.jsonl", "--registry", registry)
    disk.leave(16 << 10)
    for words in (publish, task, ("hub", "init", "--user", "ann", "--registry", registry)):
        refused(graft(*words), "can't be opened or made", "is there room on its disk")
    disk.fill(1 << 19)
    made = graft(*publish)
    assert made.exit_code == 0, made.output
    before = Registry(registry).revisions("me/adapter")
    disk.fill(0)
    result = graft("publish", place / "lora", "me/other", "--registry", registry)
    refused(result)
    assert "full" in result.output or "No space left" in result.output
    assert Registry(registry).revisions("me/adapter") == before
