"""Bases by name: packages fetched by pip from a folder, parts joined and their hash checked, and what --base means."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from graft.hub.base import named_bases
from graft.hub.base.manifest import RECORD
from graft.hub.base.named_bases import NAMED_BASES, NamedBase, Part, assemble, base_source, write_notices
from graft.hub.cli.main import main
from graft.hub.errors import BaseModelError, GraftError
from graft.hub.machine.wheels import Package, fetch, find_archive, packages_folder

PARTS = (b"the first half, ", b"and the second")
TERMS = b"<p>terms</p>"


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from, and an empty cache."""
    folder = tmp_path / "shop"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    return folder


def wheel(folder: Path, package: Package, files: dict[str, bytes]) -> None:
    stem = f"{package.name.replace('-', '_')}-{package.version}"
    about = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for name, content in {**about, **files}.items():
            archive.writestr(name, content)


@pytest.fixture
def halves(shop) -> NamedBase:
    packages = [Package(f"tiny-half-{i}", "1.0", 100) for i in range(2)]
    for package, content in zip(packages, PARTS, strict=True):
        wheel(shop, package, {"half.bin": content, "terms.html": TERMS})
    return NamedBase(
        name="tiny",
        id="test/tiny",
        what="two halves",
        licence="none",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        disk=30,
        parts=tuple(Part(package, "half.bin") for package in packages),
        notices=(Part(packages[0], "terms.html"),),
    )


def test_parts_are_fetched_joined_and_kept(halves, shop, tmp_path):
    seen = []
    assert halves.size == 200
    assemble(halves, tmp_path / "whole", lambda package, size: seen.append((package.name, size)))
    assert (tmp_path / "whole").read_bytes() == b"".join(PARTS)
    assert seen[-1] == ("tiny-half-1", 100) and halves.size == 0
    write_notices(halves, tmp_path)
    assert (tmp_path / "terms.html").read_bytes() == TERMS
    for archive in shop.iterdir():
        archive.unlink()
    assemble(halves, tmp_path / "again", lambda package, size: None)  # from what is kept
    assert [path.name for path in packages_folder().iterdir() if path.is_dir()] == []


def test_a_finished_part_is_kept_when_the_next_can_not_be_had(halves, shop, tmp_path):
    (shop / "tiny_half_1-1.0-py3-none-any.whl").unlink()
    with pytest.raises(GraftError, match=r"Can't download tiny-half-1 1.0: .*what is there is kept"):
        assemble(halves, tmp_path / "whole", lambda package, size: None)
    first, second = halves.packages
    assert find_archive(first) and not find_archive(second) and halves.size == 100


@pytest.mark.parametrize("change", ["bytes", "member", "archive"])
def test_another_file_than_the_pinned_one_is_removed(halves, shop, tmp_path, change):
    second = halves.packages[1]
    if change == "archive":
        packages_folder().mkdir(parents=True)
        (packages_folder() / "tiny_half_1-1.0-py3-none-any.whl").write_bytes(b"no zip")
    else:
        wheel(shop, second, {"half.bin" if change == "bytes" else "other.bin": b"changed"})
    with pytest.raises(BaseModelError, match="is not the file that graft knows by that name"):
        assemble(halves, tmp_path / "whole", lambda package, size: None)
    assert not (tmp_path / "whole").exists() and not find_archive(second)


def test_source_archives_and_unknown_packages(shop):
    with pytest.raises(GraftError, match=r"Can't download no-such-thing 9"):
        fetch(Package("no-such-thing", "9", 1, source_only=True))


def test_a_folder_that_is_taken_is_found_before_the_download(halves, tmp_path, monkeypatch):
    monkeypatch.setitem(NAMED_BASES, halves.name, halves)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    done = CliRunner().invoke(main, ["base", "import", halves.name, str(tmp_path / "taken")])
    assert done.exit_code == 1 and "not empty" in done.output
    assert not any(find_archive(package) for package in halves.packages)


def imported(folder: Path, id: str) -> None:
    folder.mkdir(parents=True)
    (folder / RECORD).write_text(f'{{"id": "{id}"}}')


def test_what_base_means(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelError, match="`graft base import smollm2`"):
        base_source("smollm2")
    with pytest.raises(BaseModelError, match="There is no folder nosuch, and it is no hub id"):
        base_source("nosuch")
    assert base_source("org/elsewhere") == "org/elsewhere"  # a hub's, asked when it is loaded
    imported(named_bases.bases_folder() / "smollm2", "org/elsewhere")
    folder = str(tmp_path / "cache" / "bases" / "smollm2")
    assert base_source("smollm2") == base_source("org/elsewhere") == folder
    Path("smollm2").mkdir()
    assert base_source("smollm2") == "smollm2"  # a folder here comes first


def test_commands_refuse_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "plan.toml").write_text(f'base = "smollm2"\n[[adapter]]\nmethod = "lora"\ndata = "{data}"\nout = "x"\n')
    for words in (
        ("train", "--base", "smollm2", "--method", "lora", "--data", str(data), "--out", str(tmp_path / "out")),
        ("train", "--plan", str(tmp_path / "plan.toml")),
        ("serve", "--base", "smollm2"),
        ("export", str(tmp_path), "--base", "smollm2", "--merge", str(tmp_path / "out")),
        ("base", "info", "smollm2"),
    ):
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 1 and "`graft base import smollm2`" in done.output, (words, done.output)


def test_import_by_name_says_what_it_fetches_and_takes_what_is_there(halves, shop, monkeypatch, tmp_path):
    monkeypatch.setitem(NAMED_BASES, "tiny", replace(halves, note="a note"))
    done = CliRunner().invoke(main, ["base", "import", "tiny"])  # its halves are no GGUF
    assert done.exit_code == 1 and "Can't read the GGUF file" in done.output, done.output
    for said in ("two halves", "200 bytes of 2 Python packages", "licence      none", "a note", "tiny-half-1 1.0"):
        assert said in done.output, done.output
    assert [path.name for path in (tmp_path / "cache" / "bases").iterdir()] == []
    done = CliRunner().invoke(main, ["base", "import", "elsewhere"])
    assert done.exit_code == 2 and "smollm2" in done.output
