"""K2: a base is known by whatever names it: the manifest beside a local path, a download cache's path, the card.

Reports: https://github.com/huggingface/transformers/issues/33922 (a config that names the folder it was trained on). What
is right: the id and fingerprint that are recorded for what the name leads to, in publishing, searching and serving alike;
a name that leads nowhere is an error, and an adapter that is passed over is named.
"""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from graft.hub.base.manifest import record
from graft.hub.cli.main import main
from graft.hub.errors import ArtifactError, BaseMismatchError, ConflictError, RevisionNotFoundError
from graft.hub.registry.access.tokens import first_admin
from graft.hub.registry.registry import Registry
from graft.hub.registry.remote.client import RemoteRegistry
from graft.hub.registry.search import Query, on_base
from graft.server.adapters.names import AdapterNames
from graft.server.commands.scoring.scorekeeping import of_task

ID, PRINT = "acme/tiny-llama", "f" * 64


@pytest.fixture
def imported(tmp_path: Path, spec) -> Path:
    """A base's folder with its manifest."""
    folder = tmp_path / "bases" / "tiny"
    folder.mkdir(parents=True)
    record(folder, spec)
    return folder


def plain(lora_folder, folder: Path, base: object, **more) -> Path:
    """A PEFT folder without graft.json."""
    return lora_folder(folder, base=str(base), fingerprint=None, **more)


def published(registry: Registry, folder: Path, name: str = "ann/news"):
    revision = registry.publish(folder, name)
    return revision.base_id, revision.base_fingerprint


def config_of(registry: Registry, name: str = "ann/news") -> dict:
    return json.loads(registry.blobs.read(registry.tree(registry.resolve(name).id)["adapter_config.json"]))


def test_a_path_to_an_imported_base(registry: Registry, imported: Path, lora_folder, tmp_path: Path) -> None:
    assert published(registry, plain(lora_folder, tmp_path / "a", imported)) == (ID, PRINT)
    assert config_of(registry)["base_model_name_or_path"] == ID
    card = registry.blobs.read(registry.tree(registry.resolve("ann/news").id)["README.md"])
    assert f"base_model: {ID}".encode() in card and str(imported).encode() not in card
    assert [entry.base for entry in registry.search(Query(base=PRINT)).entries] == [ID]


def test_a_path_to_an_imported_base_that_the_registry_has_never_seen(imported: Path, lora_folder, tmp_path) -> None:
    registry = Registry(tmp_path / "new.db")
    assert published(registry, plain(lora_folder, tmp_path / "a", imported)) == (ID, PRINT)
    assert registry.base(ID).fingerprint == PRINT


def test_two_bases_of_one_id_are_told_apart_by_the_manifest(
    registry: Registry, imported: Path, lora_folder, base_spec, tmp_path: Path
) -> None:
    """As a registry of before may hold them: by now the second one is refused."""
    twin = base_spec(ID, "e" * 64)
    with pytest.raises(ConflictError, match="id of another base"):
        registry.add_base(twin)
    registry.db.execute("INSERT INTO bases VALUES (?, ?, ?, ?)", [twin.fingerprint, ID, twin.to_json(), "2026"])
    assert published(registry, plain(lora_folder, tmp_path / "a", imported)) == (ID, PRINT)


@pytest.mark.parametrize("spelled", ["{}/", "{}/.", "{}/../tiny", "~/bases/tiny"])
def test_the_path_may_be_spelled_as_people_do(
    registry: Registry, imported: Path, lora_folder, tmp_path: Path, monkeypatch, spelled: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert published(registry, plain(lora_folder, tmp_path / "a", spelled.format(imported))) == (ID, PRINT)


def test_a_relative_path(registry: Registry, imported: Path, lora_folder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert published(registry, plain(lora_folder, tmp_path / "a", "./bases/tiny")) == (ID, PRINT)
    assert published(registry, plain(lora_folder, tmp_path / "b", "bases/tiny"), "ann/second") == (ID, PRINT)


def test_by_wire_too(hub: str, registry: Registry, imported: Path, lora_folder, tmp_path: Path) -> None:
    remote = RemoteRegistry(hub, token=first_admin(registry.db, "ann"))
    revision = remote.publish(plain(lora_folder, tmp_path / "a", imported), "ann/sent")
    assert (revision.base_id, revision.base_fingerprint) == (ID, PRINT)


def test_a_download_caches_path_says_which_repo_it_is(registry: Registry, lora_folder, tmp_path: Path) -> None:
    path = f"/home/eve/.cache/huggingface/hub/models--acme--tiny-llama/snapshots/{'a' * 40}"
    assert published(registry, plain(lora_folder, tmp_path / "a", path)) == (ID, PRINT)


def test_the_card_names_the_base_beside_a_path(registry: Registry, lora_folder, tmp_path: Path) -> None:
    card = f"---\nbase_model: {ID}\ntags: [task:news-topic]\n---\n"
    assert published(registry, plain(lora_folder, tmp_path / "a", "/mnt/models/llama", card=card)) == (ID, PRINT)
    assert published(registry, plain(lora_folder, tmp_path / "b", "", card=card), "ann/nameless") == (ID, PRINT)


def test_a_path_that_nothing_explains_is_refused_still(registry: Registry, lora_folder, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="graft base import"):
        registry.publish(plain(lora_folder, tmp_path / "a", "/mnt/models/llama"), "ann/news")


def test_what_the_adapter_itself_records_comes_first(
    registry: Registry, imported: Path, lora_folder, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="graft base import"):
        registry.publish(lora_folder(tmp_path / "a", base=str(imported), fingerprint="d" * 64), "ann/news")
    card = f"---\nbase_model: {ID}\n---\n"
    with pytest.raises(BaseMismatchError, match="fingerprint dddddddddddd"):
        registry.publish(lora_folder(tmp_path / "b", base="/x/y", fingerprint="d" * 64, card=card), "ann/news")


# Found again


def test_an_adapter_from_before_its_base_was_recorded_is_found_by_all_its_names(
    lora_folder, spec, base_spec, tmp_path: Path
) -> None:
    """One by the fingerprint in its graft.json under another id, one by the id alone."""
    registry = Registry(tmp_path / "r.db")
    registry.publish(lora_folder(tmp_path / "a", base="else/where"), "ann/by-print")
    registry.publish(plain(lora_folder, tmp_path / "b", ID), "ann/by-id")
    both = {"ann/by-print", "ann/by-id"}
    assert {entry.name for entry in on_base(registry.search, spec)} == {"ann/by-id"}  # nobody knows the id of the print
    registry.add_base(spec)
    for asked in (ID, PRINT):
        assert {entry.name for entry in registry.search(Query(base=asked)).entries} == both
    assert {entry.name for entry in registry.search(Query(labels=(f"base_model:adapter:{ID}",))).entries} == both
    assert {entry.name for entry in on_base(registry.search, spec, "news-topic")} == both
    registry.add_base(base_spec("acme/renamed"))
    found = on_base(registry.search, spec)  # its folder says the old id still
    assert {entry.name for entry in found} == both


def test_evaluating_all_takes_every_name_and_names_the_others(
    registry: Registry, lora_folder, spec, tmp_path: Path
) -> None:
    registry.publish(lora_folder(tmp_path / "a"), "ann/here")
    registry.publish(plain(lora_folder, tmp_path / "b", "else/where"), "ann/there")
    said: list[str] = []
    [found] = of_task(registry, "news-topic", spec, said.append)
    assert found.repo == "ann/here"
    assert said == ["left out: ann/there, for the base else/where"]


def test_the_server_lists_what_it_can_serve_by_any_name(lora_folder, spec, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r.db")
    registry.publish(plain(lora_folder, tmp_path / "b", ID), "ann/by-id")
    library = AdapterNames(spec.fingerprint, shelf=registry)
    assert [entry.name for entry in library.search_shelf(spec)] == ["ann/by-id"]


def test_search_takes_the_bases_folder(registry: Registry, imported: Path, lora_folder, tmp_path: Path) -> None:
    registry.publish(lora_folder(tmp_path / "a"), "ann/here")
    registry.publish(plain(lora_folder, tmp_path / "b", "else/where"), "ann/there")
    words = ["search", "--base", str(imported), "--registry", str(registry.path), "--json"]
    done = CliRunner().invoke(main, words)
    assert [row["name"] for row in json.loads(done.stdout)] == ["ann/here"]


def test_production_of_a_task_is_on_the_base_that_is_asked_for(
    registry: Registry, lora_folder, base_spec, tmp_path: Path
) -> None:
    registry.publish(lora_folder(tmp_path / "a"), "ann/here")
    registry.promote("ann/here", "production")
    registry.publish(plain(lora_folder, tmp_path / "b", "else/where"), "ann/there")
    registry.promote("ann/there", "production")  # the latest, and of another base that nobody recorded
    assert registry.resolve("task:news-topic", base=PRINT).repo == "ann/here"
    assert registry.resolve("task:news-topic").repo == "ann/there"
    registry.add_base(base_spec("third/base", "3" * 64))
    with pytest.raises(RevisionNotFoundError, match="on this base"):
        registry.resolve("task:news-topic", base="3" * 64)
