"""The hub's commands as a user types them: exit codes, one JSON document, messages instead of tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from graft.hub.cli.main import main
from graft.hub.errors import UnauthorizedError
from graft.hub.registry.access.tokens import caller_of
from graft.hub.registry.registry import Registry


@pytest.fixture
def graft(tmp_path: Path, registry: Registry):
    """`graft("search", "--json")` runs a command on the test's registry."""

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, [*words, "--registry", str(tmp_path / "registry.db")])

    return run


def test_the_whole_life_of_an_adapter(graft, adapter: Path, tmp_path: Path) -> None:
    data = tmp_path / "eval.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    made = json.loads(graft("task", "add", "news-topic", "--metric", "accuracy", "--data", str(data), "--json").output)
    assert made["examples"] == 1
    assert [task["slug"] for task in json.loads(graft("task", "list", "--json").output)] == ["news-topic"]
    revision = json.loads(graft("publish", str(adapter), "ann/news", "--tag", "v1", "--json").output)
    [found] = json.loads(graft("search", "--task", "news-topic", "--json").output)
    assert found["name"] == "ann/news" and found["revision_id"] == revision["id"]
    assert json.loads(graft("promote", "ann/news@v1", "production", "--why", "best", "--json").output)["alias"]
    past = json.loads(graft("history", "ann/news", "--json").output)
    assert past["moves"][0]["why"] == "best" and len(past["revisions"]) == 1
    pulled = graft("pull", "ann/news@production", "--out", str(tmp_path / "out"))
    assert pulled.exit_code == 0 and (tmp_path / "out/adapter_model.safetensors").is_file()
    for words in (("search",), ("history", "ann/news"), ("task", "list"), ("registry", "stats"), ("registry", "check")):
        shown = graft(*words)
        assert shown.exit_code == 0 and "│" in shown.output, shown.output


def test_upkeep_commands(graft, adapter: Path, tmp_path: Path) -> None:
    graft("publish", str(adapter), "ann/news")
    assert json.loads(graft("registry", "check", "--json").output)["problems"] == []
    assert json.loads(graft("registry", "backup", str(tmp_path / "backup"), "--json").output)["problems"] == []
    restored = CliRunner().invoke(
        main, ["registry", "restore", str(tmp_path / "backup"), "--registry", str(tmp_path / "new.db")]
    )
    assert restored.exit_code == 0, restored.output
    assert json.loads(graft("registry", "gc", "--json").output)["blobs"] == 0


def test_users_and_tokens(graft, registry: Registry, tmp_path: Path) -> None:
    made = json.loads(graft("hub", "init", "--user", "ann", "--json").output)
    assert made["user"] == "ann" and made["token"].startswith("hf_")
    again = graft("hub", "init", "--user", "bob")
    assert again.exit_code == 1 and "has users already" in again.output
    tokens = [json.loads(graft("hub", "token", "--user", "bob", "--scope", "read", "--json").output) for _ in range(3)]
    lost = tmp_path / "lost"
    lost.write_text(tokens[0]["token"] + "\n")
    assert "1 of bob's" in graft("hub", "revoke", "--user", "bob", "--token", str(lost)).output
    with pytest.raises(UnauthorizedError):
        caller_of(registry.db, tokens[0]["token"])
    assert caller_of(registry.db, tokens[1]["token"]).name == "bob"
    assert json.loads(graft("hub", "revoke", "--user", "bob", "--json").output) == {"user": "bob", "revoked": 2}
    assert caller_of(registry.db, made["token"]).name == "ann"
    nothing = graft("hub", "revoke", "--user", "bob")
    assert nothing.exit_code == 1 and "error: bob has no token" in nothing.output


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("pull", "ann/nothing"), 1, "error: There is no adapter 'ann/nothing'"),
        (("publish", "/nowhere", "ann/x"), 1, "error: /nowhere is no folder"),
        (("promote", "ann/nothing@v1", "production"), 1, "error: There is no adapter"),
        (("task", "add", "T!", "--metric", "accuracy", "--data", "/dev/null"), 1, "error: "),
        (("task", "add", "t", "--metric", "rouge_l", "--data", "/dev/null"), 2, "is not one of 'accuracy'"),
        (("search", "--sort", "best"), 2, "Invalid value"),
        (("hub", "token", "--user", "x", "--scope", "god"), 2, "Invalid value"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_mistakes_are_messages(graft, words, code: int, said: str) -> None:
    result = graft(*words)
    assert result.exit_code == code and said in result.output, result.output
    assert "Traceback" not in result.output


def test_a_missing_registry_and_a_file_that_is_none(tmp_path: Path) -> None:
    missing = CliRunner().invoke(main, ["search", "--registry", str(tmp_path / "no.db")])
    assert missing.exit_code == 1 and "There is no registry at" in missing.output
    (tmp_path / "bad.db").write_text(
        "This is a text file, and a long enough one to be taken for a database by nobody." * 20
    )
    bad = CliRunner().invoke(main, ["search", "--registry", str(tmp_path / "bad.db")])
    assert bad.exit_code == 1 and "is no registry" in bad.output


def test_the_hub_starts_without_torch() -> None:
    code = (
        "import sys, graft.hub.cli.main, graft.hub.registry.remote.client, graft.hub.web.app, graft.hub.cli.adapters,"
        " graft.hub.cli.hub, graft.hub.cli.tasks, graft.hub.cli.registry;"
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_narrow_terminal_shows_whole_names(graft, lora_folder, tmp_path: Path, monkeypatch) -> None:
    name, task = "department/summaries-of-news", "headline"
    graft("publish", str(lora_folder(tmp_path / "a", task=task)), name)
    for columns, there, gone in (
        ("80", "score", "updated"),
        ("100", "production", "parameters"),
        ("160", "updated", "nothing"),
    ):
        monkeypatch.setenv("COLUMNS", columns)
        shown = graft("search").output
        assert f" {name} " in shown and f" {task} " in shown and there in shown and gone not in shown
