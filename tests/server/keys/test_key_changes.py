"""The file of keys as commands change it: whole or as it was, and nothing else in it."""

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graft.hub.errors import ConflictError, GraftError, NotFoundError
from graft.server.errors import InvalidKeyError
from graft.server.keys import key_file
from graft.server.keys.key_changes import add_key, remove_keys, table_text
from graft.server.keys.key_file import KeyFile, KeyTable, hash_of, new_key, read_tables
from graft.server.keys.keyring import Keyring


def table(name: str, **given: object) -> KeyTable:
    return KeyTable(name=name, hash=hash_of(new_key()), **given)


def names_in(path: Path) -> list[str]:
    return [one.name for one in read_tables(path.read_text("utf-8"), path).key]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


HASHES = ["sha256:" + digit * 64 for digit in "0123"]
BY_HAND = f"""# whose keys these are

# the first customer
# (until May)
[[key]]
name = "first"   # [[key]] in a comment
hash = "{HASHES[0]}"
adapters = [
  "a",
  "b/*",
]
  [[ key ]]
name = 'second'
hash = "{HASHES[1]}"
adapters = ["[[key]]", "x # é"]

# for everybody else
[hub]
requests_per_minute = 5

# the third
[["key"]]
hash = "{HASHES[2]}"
name = "third"
"""


def without(*lines: tuple[int, int]) -> str:
    kept = [line for n, line in enumerate(BY_HAND.splitlines(True)) if not any(a <= n < b for a, b in lines)]
    return "".join(kept)


FIRST, SECOND, THIRD = (2, 11), (11, 16), (20, 24)


@pytest.mark.parametrize(
    ("names", "left"),
    [
        ({"first"}, without(FIRST)),
        ({"second"}, without(SECOND)),
        ({"third"}, without(THIRD)),
        ({"third", "first"}, without(FIRST, THIRD)),
        ({"first", "second", "third"}, without(FIRST, SECOND, THIRD)),  # the hub's tokens are left
    ],
    ids=["first", "second", "third", "two", "all"],
)
def test_whatever_else_stands_in_a_file_stays_as_it_was_written(path: Path, names: set[str], left: str) -> None:
    path.write_text(BY_HAND, "utf-8")
    assert names_in(path) == ["first", "second", "third"]
    remove_keys(path, names)
    assert path.read_text("utf-8") == left
    for one in sorted(names):
        add_key(path, table(one))
    assert set(names_in(path)) == {"first", "second", "third"} and path.read_text("utf-8").startswith(left)


ODD = f"""[[key]]
name = "a"
hash = "{HASHES[0]}"
adapters = ['''x''', \"\"\"\\
  [[key]]\"\"\"]
[[key]]
name = "b"
hash = "{HASHES[1]}"
"""
IN_ONE_LINE = f'key = [{{name = "a", hash = "{HASHES[0]}"}}, {{name = "b", hash = "{HASHES[1]}"}}]\n'


@pytest.mark.parametrize("text", [ODD, IN_ONE_LINE], ids=["odd", "in one line"])
def test_what_can_not_be_taken_out_for_certain_is_left(path: Path, text: str) -> None:
    path.write_text(text)
    assert names_in(path) == ["a", "b"]
    with pytest.raises(GraftError, match="by hand"):
        remove_keys(path, {"a"})
    assert path.read_text() == text


def test_all_or_none_and_never_the_last(path: Path) -> None:
    for name in ("a", "b"):
        add_key(path, table(name))
    before = path.read_bytes()
    with pytest.raises(NotFoundError, match="'c'"):
        remove_keys(path, {"a", "c"})
    with pytest.raises(ConflictError, match="already"):
        add_key(path, table("a"))
    with pytest.raises(ConflictError, match="another key first"):
        remove_keys(path, {"a", "b"})
    assert path.read_bytes() == before
    remove_keys(path, {"a"})
    assert names_in(path) == ["b"]


def test_a_changed_file_is_whose_it_was_and_a_link_stays_one(path: Path, tmp_path: Path) -> None:
    add_key(path, table("a"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    link = tmp_path / "elsewhere" / "keys.toml"
    link.parent.mkdir()
    link.symlink_to(path)
    path.chmod(0o640)
    owner = (1234, 4321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(path, *owner)  # as of a server that runs as a user of its own
    add_key(link, table("b"))
    remove_keys(link, {"a"})
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, *owner)
    assert link.is_symlink() and names_in(path) == ["b"] and list(link.parent.iterdir()) == [link]


def test_where_it_can_not_be_written_it_is_as_it_was(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_key(path, table("a"))
    add_key(path, table("b"))
    before = path.read_bytes()

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("replace", "chown"):
        with monkeypatch.context() as patched:
            patched.setattr(os, step, full)
            for change in (lambda: remove_keys(path, {"a"}), lambda: add_key(path, table("c"))):
                with pytest.raises(GraftError, match=r"can't be written \(No space left"):
                    change()
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_many_change_one_file_while_it_is_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and the server never finds half a file."""
    monkeypatch.setattr(key_file, "LOOK_EVERY_S", -1.0)
    staying = new_key()
    path.write_text(table_text(KeyTable(name="stays", hash=hash_of(staying))))
    for number in range(8):
        add_key(path, table(f"old{number}"))
    keyring, done, problems = Keyring(KeyFile(path, has_hub=False), None), threading.Event(), set()

    def ask() -> None:
        while not done.is_set():
            try:
                keyring.holder(staying)
            except InvalidKeyError as error:
                problems.add(str(error))
            problems.add(keyring.problem)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            changes = [pool.submit(add_key, path, table(f"new{number}")) for number in range(8)]
            changes += [pool.submit(remove_keys, path, {f"old{number}"}) for number in range(8)]
            for change in changes:
                change.result()
    finally:
        done.set()
        asking.join()
    assert sorted(names_in(path)) == [*(f"new{number}" for number in range(8)), "stays"] and problems == {None}
