"""Pulling into a folder: all of one version, whatever was there of another."""

import os
from pathlib import Path

import pytest

from graft.hub.adapters.validation import inspect_artifact
from graft.hub.errors import ArtifactError
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.storage.blob_store import DamagedBlobError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def versions(
    registry: Registry, adapter: Path, tmp_path: Path, lora_folder
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Two versions of ann/news under the tags old and new; the old one's weights have AdapterHub's name."""
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter.safetensors")
    (adapter / "notes.txt").write_text("of the old version")
    (adapter / "figures").mkdir()
    (adapter / "figures" / "loss.md").write_text("# Old")
    newer = lora_folder(tmp_path / "newer", seed=1)
    (newer / "plots").mkdir()
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json"):
        (newer / name).write_text("{}")
    (newer / "plots" / "loss.md").write_text("# New")
    registry.publish(adapter, "ann/news", tags=["old"])
    registry.publish(newer, "ann/news", tags=["new"])
    return contents(adapter), contents(newer)


def test_another_version_takes_the_place_of_the_old(registry: Registry, versions, tmp_path: Path) -> None:
    old, new = versions
    for tag, wanted in (("old", old), ("new", new), ("old", old)):
        registry.pull(f"ann/news@{tag}", tmp_path / "out")
        assert contents(tmp_path / "out") == wanted
        assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == sorted(
            {name.partition("/")[0] for name in wanted if "/" in name}
        )


def test_what_is_no_versions_stays(registry: Registry, versions, tmp_path: Path) -> None:
    registry.pull("ann/news@old", tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("changed by hand")
    registry.pull("ann/news@new", tmp_path / "out")
    kept = {"mine.txt": b"mine", "notes.txt": b"changed by hand"}
    assert contents(tmp_path / "out") == versions[1] | kept


def test_a_damaged_blob_changes_nothing(registry: Registry, versions, tmp_path: Path) -> None:
    registry.pull("ann/news@old", tmp_path / "out")
    before = contents(tmp_path / "out")
    damaged = registry.blobs.path(registry.tree(registry.resolve("ann/news@new").id)["adapter_model.safetensors"])
    damaged.chmod(0o600)
    damaged.write_bytes(b"rotten")
    for folder in ("out", "new"):
        with pytest.raises(DamagedBlobError):
            registry.pull("ann/news@new", tmp_path / folder)
    assert contents(tmp_path / "out") == before and not (tmp_path / "new").exists()


def test_a_crash_while_files_move_leaves_nothing_that_loads(
    registry: Registry, versions, tmp_path: Path, monkeypatch
) -> None:
    calls, replace = [], os.replace
    for broken_at in range(5):
        registry.pull("ann/news@old", tmp_path / "out")
        calls.clear()

        def dies(source: object, target: object, broken_at: int = broken_at) -> None:
            calls.append(target)
            if len(calls) > broken_at:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            registry.pull("ann/news@new", tmp_path / "out")
        monkeypatch.undo()
        with pytest.raises(ArtifactError):
            inspect_artifact(tmp_path / "out", None)
    registry.pull("ann/news@new", tmp_path / "out")
    assert contents(tmp_path / "out") == versions[1]


def test_a_hub_is_pulled_from_the_same_way(hub: str, registry: Registry, versions, tmp_path: Path) -> None:
    remote = RemoteRegistry(hub)
    own = {"chat_template.jinja", "generation_config.json", "tokenizer_config.json"}  # an adapter's own words
    own |= {"adapter_config.json", "adapter_model.safetensors", "adapter.safetensors", "graft.json", "README.md"}
    for tag, version in (("old", versions[0]), ("new", versions[1])):
        remote.pull(f"ann/news@{tag}", tmp_path / "out")
        assert contents(tmp_path / "out") == {name: data for name, data in version.items() if name in own}
