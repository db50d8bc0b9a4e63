"""`graft keys`, and what `graft serve` takes of them before anything is loaded."""

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from graft.hub.cli.main import main
from graft.hub.registry.access.tokens import create_token
from graft.hub.registry.registry import Registry
from graft.hub.wsgi import is_loopback
from graft.server.keys.key_file import KeyFile
from tests.server.keys.made import write_keys


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def graft(*words: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(main, list(words))


def test_a_key_is_made_listed_and_good(here: Path) -> None:
    made = graft("keys", "new", "acme", "--adapter", "acme/*", "--no-base", "--tokens", "1000", "--expires", "30d")
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    other = json.loads(graft("keys", "new", "ops", "--admin", "--weight", "2", "--json").stdout)
    text = (here / "keys.toml").read_text()
    assert key not in text and other["key"] not in text and stat.S_IMODE((here / "keys.toml").stat().st_mode) == 0o600
    book = KeyFile(here / "keys.toml", has_hub=False).book()
    holder = book.find(key)
    assert holder is not None and holder.profile.limits.tokens == 1000 and not holder.profile.base
    assert holder.profile.allows("acme/x") and not holder.profile.allows("mine")
    found = book.find(other["key"])
    assert found is not None and found.admin and found.profile.weight == 2
    listed = graft("keys", "list")
    assert "acme/*" in listed.output and "1,000 tokens" in listed.output and key not in listed.output
    assert [one["name"] for one in json.loads(graft("keys", "list", "--json").stdout)] == ["acme", "ops"]


def test_a_key_that_is_taken_back_is_good_no_more(here: Path) -> None:
    made = {name: graft("keys", "new", name, "--adapter", f"{name}/*").stdout.strip() for name in ("a", "b", "c", "d")}
    done = graft("keys", "revoke", "c", "a", "c")
    assert done.exit_code == 0 and "a, c" in done.output
    book = KeyFile(here / "keys.toml", has_hub=False).book()
    assert {name: book.find(key) is not None for name, key in made.items()} == {
        "a": False,
        "b": True,
        "c": False,
        "d": True,
    }
    assert json.loads(graft("keys", "revoke", "d", "--json").stdout) == {"revoked": ["d"], "file": "keys.toml"}
    assert [one["name"] for one in json.loads(graft("keys", "list", "--json").stdout)] == ["b"]
    assert graft("keys", "new", "a").exit_code == 0 and graft("keys", "revoke", "b").exit_code == 0
    assert [path.name for path in here.iterdir()] == ["keys.toml"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["keys", "new", "a b"], 1, "name:"),
        (["keys", "new", "a", "--adapter", "x*"], 1, "'x*' is no name"),
        (["keys", "new", "a", "--weight", "nan"], 1, "weight"),
        (["keys", "new", "a", "--requests", "0"], 2, "requests"),
        (["keys", "new", "a", "--tokens", "9" * 30], 1, "tokens_per_minute"),
        (["keys", "new", "a", "--file", "no/such/folder/keys.toml"], 1, "No such file"),
        (["keys", "list"], 1, "can't be read"),
        (["keys", "new", "taken"], 1, "already"),
        (["keys", "new", "a", "--file", "broken.toml"], 1, "not valid TOML"),
        *((["keys", "new", odd], 1, "name:") for odd in ("", "\u00e9", "a\n", "\udcff", "a-", "a" * 10_000)),
        (["keys", "new", "a", "--adapter", "a\nb"], 1, "is no name"),
        (["keys", "new", "a", "--file", "/dev/null"], 1, "no regular file"),
        (["keys", "revoke"], 2, "NAME"),
        (["keys", "revoke", "a"], 1, "can't be read"),
        (["keys", "revoke", "a", "--file", "broken.toml"], 1, "not valid TOML"),
        (["keys", "revoke", "a", "--file", "no/such/folder/keys.toml"], 1, "No such file"),
        (["keys", "revoke", "--file", "two.toml", "first", "nobody"], 1, "has no key 'nobody'"),
        (["keys", "revoke", "--file", "two.toml", "first", "x" * 10_000], 1, "has no key 'xxx"),
        (["keys", "revoke", "--file", "two.toml", "first", "\u00e9 \n\udcff"], 1, "has no key 'é \\n\\udcff'"),
        (["keys", "revoke", "--file", "two.toml", "first", "second"], 1, "make another key first"),
    ],
)
def test_mistakes_end_with_a_sentence_and_change_nothing(here: Path, words: list[str], code: int, says: str) -> None:
    if "taken" in words:
        graft("keys", "new", "taken")
    write_keys(here / "two.toml", {"first": {}, "second": {}})
    (here / "broken.toml").write_text("[[key]")
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    done = graft(*words)
    assert done.exit_code == code and says in done.output and "Traceback" not in done.output
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


OPEN = "whoever reaches this machine could use the server"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--host", "0.0.0.0"], 1, OPEN),
        (["--host", "::"], 1, OPEN),
        (["--host", "192.168.1.5"], 1, OPEN),
        (["--host", "0.0.0.0", "--keys", "keys.toml", "--open"], 2, "give one of them"),
        (["--open-metrics"], 2, "goes with --keys"),
        (["--keys", "hub"], 2, "name it with --hub or --registry"),
        (["--keys", "absent.toml"], 1, "can't be read"),
        (["--keys", "broken.toml"], 1, "not valid TOML"),
        (["--keys", "hubs.toml"], 1, "give --hub or --registry"),
        (["--keys", "hub", "--registry", "new.db"], 1, "no users yet"),
        (["--usage", "no/such/folder/u.jsonl"], 1, "can't be written"),
        (["--keys", "keys.toml", "--usage", "."], 2, "is a directory"),
        # What is sound comes as far as the base, which isn't there.
        (["--host", "0.0.0.0", "--open"], 1, "no/base"),
        (["--host", "0.0.0.0", "--keys", "keys.toml"], 1, "no/base"),
        (["--host", "127.0.0.2"], 1, "no/base"),
        (["--keys", "hub", "--registry", "old.db"], 1, "no/base"),
        (["--keys", "hubs.toml", "--registry", "old.db", "--open-metrics"], 1, "no/base"),
    ],
)
def test_serve_says_what_it_takes_before_it_loads(here: Path, words: list[str], code: int, says: str) -> None:
    graft("keys", "new", "a")
    (here / "broken.toml").write_text("[[key]")
    (here / "hubs.toml").write_text("[hub]\nconcurrency = 4\n")
    Registry(here / "new.db")
    create_token(Registry(here / "old.db").db, "ann", "read")
    done = graft("serve", "--base", "no/base", "--port", "0", *words)
    assert done.exit_code == code and says in done.output and "Traceback" not in done.output
    if says == OPEN:
        assert "graft keys new" in done.output and "--open" in done.output


def test_loopback_is_this_machine_alone() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(
        map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "::ffff:10.0.0.1", "localhost.evil.org"))
    )
