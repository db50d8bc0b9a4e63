"""Pulling into a folder: all of one version, whatever was there of another."""

import io
import json
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from rich.console import Console

from graft.hub.adapters.validation import inspect_artifact
from graft.hub.errors import ArtifactError, UnreachableError
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote import api
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.storage.blob_store import DamagedBlobError
from graft.hub.terminal.download_progress import Pull
from graft.hub.web.app import create_app


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


def cutting(app: Callable, every: int, asked: list[str | None], *, whole: bool) -> Callable:
    """`app`, whose files are cut off after `every` bytes; `whole`: it takes no notice of which part is asked for."""

    def answer(environ: dict, start: Callable) -> Iterable[bytes]:
        if "/resolve/" not in environ["PATH_INFO"] or "model.safe" not in environ["PATH_INFO"]:
            return app(environ, start)
        asked.append(environ.get("HTTP_RANGE"))
        if whole:
            environ.pop("HTTP_RANGE", None)
        body = b"".join(app(environ, start))
        return [body[: every * len(asked) if whole else every]]

    return answer


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_cut_off_is_taken_up_where_it_ended(
    hub: str, running: dict, registry: Registry, adapter: Path, tmp_path: Path, whole: bool, monkeypatch
) -> None:
    monkeypatch.setattr(api, "CUT_PAUSE_S", 0.001)
    registry.publish(adapter, "ann/news")
    size, asked, told = (adapter / "adapter_model.safetensors").stat().st_size, [], []
    running["app"] = cutting(running["app"], size // 3, asked, whole=whole)
    RemoteRegistry(hub).pull("ann/news", tmp_path / "out", told=lambda came, of: told.append((came, of)))
    assert contents(tmp_path / "out") == contents(adapter)
    third = size // 3
    assert asked == [None, f"bytes={third}-", f"bytes={2 * third}-", *([f"bytes={3 * third}-"] if size % 3 else [])]
    assert told == sorted(told) and told[-1] == (sum(map(len, contents(adapter).values())),) * 2
    running["app"] = cutting(create_app(registry), 0, asked, whole=False)
    with pytest.raises(UnreachableError):
        RemoteRegistry(hub).pull("ann/news", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_all_pages_of_a_listing_are_read(
    hub: str, running: dict, registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    """Of a repo with more than a thousand entries a hub lists as many, and links to the rest."""
    registry.publish(adapter, "ann/news")
    app = running["app"]

    def one_a_page(environ: dict, start: Callable) -> Iterable[bytes]:
        if "/tree/" not in environ["PATH_INFO"]:
            return app(environ, start)
        at = int(environ.pop("QUERY_STRING").rpartition("p=")[2] or 0)
        rows = json.loads(b"".join(app(environ | {"QUERY_STRING": ""}, lambda *head: None)))
        body = json.dumps(rows[at : at + 1]).encode()
        link = [("Link", f'<{hub}{environ["PATH_INFO"]}?p={at + 1}>; rel="next"')] if at + 1 < len(rows) else []
        start("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *link])
        return [body]

    running["app"] = one_a_page
    RemoteRegistry(hub).pull("ann/news", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(adapter)


def test_a_terminal_shows_how_much_has_come(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    registry.publish(adapter, "ann/news")
    seen = io.StringIO()
    with Pull(Console(file=seen, force_terminal=True, width=100), "ann/news\x1b[2J[red]") as told:
        registry.pull("ann/news", tmp_path / "out", told=told)
    assert "ann/news" in seen.getvalue() and "[red]" in seen.getvalue() and "\x1b[2J" not in seen.getvalue()
    assert re.search(r"([\d.]+)/\1 kB", seen.getvalue())
