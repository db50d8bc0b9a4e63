"""The file of keys: what it may hold, what is refused, and how it is read again while served."""

import logging
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from graft.hub.errors import GraftError
from graft.server.errors import InvalidKeyError
from graft.server.keys import key_file
from graft.server.keys.holders import Holder, Limits, Profile
from graft.server.keys.key_changes import table_text
from graft.server.keys.key_file import KeyFile, KeyTable, hash_of, new_key, read_tables, read_text
from graft.server.keys.keyring import MAX_KEY_CHARS, Keyring
from tests.server.keys.made import write_keys
from tests.server.scarce import files_left

HASH = "sha256:" + "0" * 64
ONE = f'[[key]]\nname = "a"\nhash = "{HASH}"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


@pytest.fixture(autouse=True)
def always_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "LOOK_EVERY_S", -1.0)


def test_a_key_is_found_with_all_that_it_is_good_for(path: Path) -> None:
    made = write_keys(
        path,
        {
            "acme.prod": {
                "adapters": ["acme/*", 'odd "name" \\ é'],
                "base": False,
                "requests_per_minute": 60,
                "tokens_per_minute": 9000,
                "concurrency": 4,
                "weight": 2.5,
            },
            "ops": {"admin": True},
        },
    )
    book = KeyFile(path, has_hub=False).book()
    wanted = Profile(("acme/*", 'odd "name" \\ é'), False, Limits(60, 9000, 4), 2.5)
    assert book.find(made["acme.prod"]) == Holder("acme.prod", wanted)
    assert book.find(made["ops"]) == Holder("ops", Profile(), admin=True)
    assert all(key not in path.read_text() and key not in repr(book) for key in made.values())
    for wrong in ("", "x", made["ops"][:-1], made["ops"] + "x", made["ops"].upper(), HASH, "é\udcff\x00" * 50):
        assert book.find(wrong) is None


def test_a_key_ends_at_its_time(path: Path) -> None:
    now = datetime.now(UTC)
    ends = {"over": now, "soon": now + timedelta(days=1)}
    made = write_keys(path, {name: {"expires": at} for name, at in ends.items()})
    book = KeyFile(path, has_hub=False).book()
    assert book.find(made["over"]) is None and book.find(made["soon"]) is not None
    [table] = read_tables(ONE + "expires = 2031-02-03\n", path).key
    assert table.expires == datetime(2031, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("*", ["mine", "ns/a", "ns/a@v1", "task:t"], []),
        ("mine", ["mine"], ["Mine", "mine2", "ns/mine", "mine/a", ""]),
        (
            "ns/*",
            ["ns/a", "ns/a@v1", "NS/A"],
            ["ns", "ns/", "nsx/a", "other/a", "ns/../other/a", "ns/a/b", "task:ns/a"],
        ),
        ("ns/a", ["ns/a", "ns/a@v1", "Ns/A@x"], ["ns/ab", "ns/b", "ns/a/b"]),
        ("ns/a@v1", ["ns/a@v1"], ["ns/a", "ns/a@v2", "ns/a@v1@x"]),
        ("task:t", ["task:t"], ["task:u", "t"]),
        ("task:*", ["task:t"], ["ns/task:t", "mine"]),
    ],
)
def test_patterns_cover_names(pattern: str, allowed: list[str], refused: list[str]) -> None:
    profile = Profile((pattern,))
    assert [name for name in allowed if not profile.allows(name)] == []
    assert [name for name in refused if profile.allows(name)] == []
    assert not Profile(()).allows("mine")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("[[key]\n", "not valid TOML"),
        ("a = " + "[" * 5000, "not valid TOML"),
        ("\x00", "not valid TOML"),
        ("key = 1\n", r"\[key\]: Input should be a valid list"),
        ("[[keys]]\nname = 'a'\n", r"\[keys\]: there is no such key or table"),
        ("[[key]]\nname = 'a'\n", r"\[\[key\]\] number 1, hash: is required"),
        (f"[[key]]\nname = ''\nhash = '{HASH}'\n", "number 1, name: takes up to 64 letters"),
        (f"[[key]]\nname = 'a\\n'\nhash = '{HASH}'\n", "number 1, name"),
        (f"[[key]]\nname = 'a b'\nhash = '{HASH}'\n", "number 1, name"),
        (f"[[key]]\nname = 'hub:a'\nhash = '{HASH}'\n", "number 1, name"),
        ("[[key]]\nname = 'a'\nhash = 'sk-graft-secret'\n", "number 1, hash"),
        (ONE + "adaptors = ['a']\n", "adaptors: there is no such key"),
        (ONE + "adapters = 'a'\n", "adapters: Input should be a valid list"),
        (ONE + "adapters = ['a*']\n", r"adapters.0: 'a\*' is no name"),
        (ONE + "adapters = ['*/a']\n", "is no name"),
        (ONE + "requests_per_minute = 0\n", "requests_per_minute: Input should be greater"),
        (ONE + "tokens_per_minute = '5'\n", "tokens_per_minute: Input should be a valid integer"),
        (ONE + "tokens_per_minute = true\n", "tokens_per_minute: Input should be a valid integer"),
        (ONE + "weight = nan\n", "weight"),
        (ONE + "weight = 0\n", "weight: Input should be greater"),
        (ONE + "admin = 1\n", "admin: Input should be a valid boolean"),
        (ONE + "expires = 2031-01-01T00:00:00\n", "expires: needs a time zone"),
        (ONE + "expires = '2031-01-01'\n", "expires: must be a date"),
        (ONE + ONE, "2 keys have the name 'a'"),
        (ONE + ONE.replace('"a"', '"b"'), "2 keys have the hash"),
        ("[hub]\n", "give --hub or --registry"),
        ("[hub]\nadmin = true\n", r"\[hub\], admin: there is no such key"),
    ],
)
def test_a_file_that_wont_do_is_refused_by_what_is_wrong(path: Path, text: str, says: str) -> None:
    path.write_text(text)
    with pytest.raises(GraftError, match=says) as refused:
        KeyFile(path, has_hub=False)
    assert str(path) in str(refused.value) and "secret" not in str(refused.value)


def test_a_file_that_cant_be_read_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (path, tmp_path, path / "x"):
        with pytest.raises(GraftError, match="can't be read"):
            KeyFile(where, has_hub=False)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GraftError, match="no text"):
        KeyFile(path, has_hub=False)
    monkeypatch.setattr(key_file, "MAX_FILE_BYTES", 1)
    with pytest.raises(GraftError, match="larger than"):
        KeyFile(path, has_hub=False)


def test_a_pipe_in_its_place_holds_nobody(path: Path) -> None:
    """Who reads one waits until somebody writes."""
    key = write_keys(path, {"a": {}})["a"]
    file = KeyFile(path, has_hub=False)
    path.unlink()
    os.mkfifo(path)
    assert "no regular file" in (file.problem or "") and file.book().find(key) is not None
    with pytest.raises(GraftError, match="no regular file"):
        KeyFile(Path("/dev/zero"), has_hub=False)


def test_the_file_is_read_again_and_a_broken_one_leaves_the_keys(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = write_keys(path, {"a": {}})["a"]
    file = KeyFile(path, has_hub=False)
    new = write_keys(path, {"b": {}})["b"]
    assert file.book().find(old) is None and file.book().find(new) is not None and file.problem is None
    for broken in (b"", b"[[key]]\nname =", b"\xff"):
        path.write_bytes(broken)
        assert file.book().find(new) is not None
        assert file.problem is not None and str(path) in file.problem
    path.unlink()
    assert "can't be read" in (file.problem or "") and file.book().find(new) is not None
    assert len([record for record in caplog.records if "of before go on to hold" in record.message]) == 4  # once each
    assert not any(new in record.message for record in caplog.records)
    newer = write_keys(path, {"c": {}})["c"]
    assert file.book().find(newer) is not None and file.book().find(new) is None and file.problem is None


def test_a_file_that_could_not_be_read_once_is_tried_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever was taken back in it would else stay good until it changes once more."""
    old = write_keys(path, {"a": {}})["a"]
    file = KeyFile(path, has_hub=False)
    new = write_keys(path, {"b": {}})["b"]
    with files_left(0):
        for _ in range(3):
            assert "Too many open files" in (file.problem or "") and file.book().find(old) is not None
    assert file.book().find(old) is None and file.book().find(new) is not None and file.problem is None
    assert caplog.text.count("of before go on to hold") == 1


def test_a_process_that_could_not_read_the_file_at_its_start_reads_it_soon(path: Path) -> None:
    key = write_keys(path, {"a": {}})["a"]
    with files_left(0):
        file = KeyFile(path, has_hub=False, is_sound=False)
        assert file.problem is not None and file.book().find(key) is None
    assert file.book().find(key) is not None and file.problem is None


def test_a_file_that_was_read_and_wont_do_is_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one takes long."""
    write_keys(path, {"a": {}})
    file, read = KeyFile(path, has_hub=False), []
    path.write_text("[[key]")
    monkeypatch.setattr(key_file, "read_text", lambda path: read.append(path) or read_text(path))
    for _ in range(3):
        assert "not valid TOML" in (file.problem or "")
    assert len(read) == 1


def test_a_file_that_may_be_read_again_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rights change neither its size nor when it was written."""
    caplog.set_level(logging.INFO, logger=key_file.log.name)
    write_keys(path, {"a": {}})
    file = KeyFile(path, has_hub=False)
    assert file.problem is None and not caplog.records
    path.chmod(0o640)
    assert file.problem is None and "1 keys" in caplog.text


def test_the_file_changes_while_many_threads_ask(path: Path) -> None:
    """A key that stays is good at every moment, whatever becomes of the file."""
    staying = write_keys(path, {"stays": {}})["stays"]
    [table] = read_tables(path.read_text(), path).key
    keyring, done, failed = Keyring(KeyFile(path, has_hub=False), None), threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            try:
                keyring.holder(staying)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for number in range(60):
        others = [KeyTable(name=f"o{i}", hash=hash_of(new_key())) for i in range(number % 5)]
        text = "".join(map(table_text, [table, *others]))
        if number % 3 == 0:
            path.write_text(text[: len(text) // 2])  # as an editor that is killed leaves it
        if number % 3 == 1:
            path.write_text(text)
        if number % 3 == 2:
            (path.with_suffix(".new")).write_text(text)
            os.replace(path.with_suffix(".new"), path)
        keyring.holder(staying)
    done.set()
    for thread in threads:
        thread.join()
    assert failed == [] and keyring.problem is None


def test_what_is_no_key_of_ours_goes_to_no_hub_by_mistake(path: Path) -> None:
    asked: list[str] = []

    class Hub:
        def holder(self, token: str, profile: Profile) -> Holder:
            asked.append(token)
            return Holder("hub:ann", profile)

    ours = write_keys(path, {"a": {}})["a"]
    without_hub = Keyring(KeyFile(path, has_hub=True), Hub())
    for wrong in ("hf_token", new_key(), "x" * (MAX_KEY_CHARS + 1)):
        with pytest.raises(InvalidKeyError):
            without_hub.holder(wrong)
    write_keys(path, {"a": {}}, "[hub]\nrequests_per_minute = 5\n")
    with_hub = Keyring(KeyFile(path, has_hub=True), Hub())
    for wrong in (ours, new_key()):  # taken back, or never there
        with pytest.raises(InvalidKeyError):
            with_hub.holder(wrong)
    assert asked == []
    assert with_hub.holder("hf_token").profile.limits == Limits(requests=5) and asked == ["hf_token"]


def test_a_file_that_has_gone_bad_by_the_start_of_a_process_lets_nobody_in_until_it_is_mended(path: Path) -> None:
    path.write_text("[[key]")
    keyring = Keyring(KeyFile(path, has_hub=False, is_sound=False), None)
    assert keyring.problem is not None
    with pytest.raises(InvalidKeyError):
        keyring.holder(new_key())
    key = write_keys(path, {"a": {}})["a"]
    assert keyring.holder(key).name == "a" and keyring.problem is None
