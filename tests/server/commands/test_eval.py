"""`graft eval` as a user types it: what is scored is kept, whatever happens to the rest."""

import json
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from graft.hub.base.manifest import record
from graft.hub.cli.hub_server import http_server
from graft.hub.cli.main import main
from graft.hub.errors import ForbiddenError
from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app
from graft.server.commands.scoring.scorekeeping import Scorekeeper
from graft.server.engine.engine import Engine
from tests.conftest import tiny_base
from tests.server.conftest import write_folder

CARD = "---\ntags:\n- task:letters\n---\nA card.\n"
ROWS = [{"prompt": f"{letter}?", "completion": " yes", "labels": [" yes", " no"]} for letter in "abc"]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base = tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    record(folder, base.spec)
    return folder


@pytest.fixture
def shelf(tmp_path):
    """A registry with a task and two adapters for it."""
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    registry = Registry(tmp_path / "registry.db")
    registry.add_task("letters", "accuracy", (tmp_path / "eval.jsonl").read_bytes(), "")
    base = tiny_base("llama")
    registry.add_base(base.spec)
    for seed, name in enumerate(("ann/lora", "bob/ia3")):
        publish(registry, base, tmp_path, name, seed)
    return registry


def publish(registry, base, tmp_path, name, seed):
    folder = write_folder(tmp_path / f"folder-{seed}", name.partition("/")[2], base, seed)
    (folder / "README.md").write_text(CARD)
    registry.publish(folder, name)


@pytest.fixture
def graft_eval(shelf, base_folder, tmp_path):
    def run(*words):
        place = ["--registry", str(tmp_path / "registry.db"), "--base", str(base_folder)]
        flags = ["--device", "cpu", "--dtype", "float32", "--json"]
        return CliRunner().invoke(main, ["eval", "--task", "letters", *place, *flags, *words])

    return run


def names(done):
    return sorted(row["name"] or "" for row in json.loads(done.stdout))


def test_what_is_scored_on_the_same_data_is_not_scored_again(graft_eval, shelf, tmp_path, monkeypatch):
    first = graft_eval()
    assert first.exit_code == 0, first.output
    assert names(first) == ["", "ann/lora", "bob/ia3"] and "3/3  " in first.stderr
    with monkeypatch.context() as patch:
        patch.setattr("graft.server.engine.engine.Engine.__init__", None)
        second = graft_eval()
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout) == [row | {"name": row["repo"]} for row in json.loads(first.stdout)]
    assert "2 of 2 adapters are scored on this data already: --again" in second.stderr
    publish(shelf, tiny_base("llama"), tmp_path, "cat/bitfit", 2)
    third = graft_eval()
    assert names(third) == ["", "ann/lora", "bob/ia3", "cat/bitfit"] and "2/2  " in third.stderr
    assert len(shelf.evaluations("ann/lora")) == 1
    for words in (("--again",), ("--limit", "2"), ("--adapters", "bob/ia3", "--dtype", "bfloat16")):
        before = len(shelf.evaluations("bob/ia3"))
        assert graft_eval(*words).exit_code == 0 and len(shelf.evaluations("bob/ia3")) == before + 1


def test_names_that_are_not_there_fail_before_the_base_is_loaded(graft_eval, monkeypatch):
    monkeypatch.setattr("graft.hub.base.model.load_base", None)
    done = graft_eval("--adapters", "ann/lora, ann/nothing,lora")
    assert done.exit_code == 1 and "'ann/nothing'" in done.stderr and "'lora'" in done.stderr
    assert "can't be read" in graft_eval("--data", "nowhere.jsonl").stderr


def test_ctrl_c_keeps_what_is_scored_and_the_same_command_goes_on(graft_eval, shelf, monkeypatch):
    record_score = Scorekeeper.record

    def interrupted(self, found, systems):
        if found.model and found.model.startswith("bob/"):
            raise KeyboardInterrupt
        return record_score(self, found, systems)

    with monkeypatch.context() as patch:
        patch.setattr(Scorekeeper, "record", interrupted)
        ended = graft_eval("--adapters", "ann/lora,bob/ia3")
    assert ended.exit_code == 1 and "Interrupted. What is scored is kept" in ended.stderr
    assert names(ended) == ["", "ann/lora"] and len(shelf.evaluations("ann/lora")) == 1
    rest = graft_eval()
    assert rest.exit_code == 0 and names(rest) == ["", "ann/lora", "bob/ia3"]
    assert len(shelf.evaluations("ann/lora")) == len(shelf.evaluations("bob/ia3")) == 1


def test_two_runs_at_once_record_each_score_once(graft_eval, shelf, monkeypatch):
    record_score, other = Scorekeeper.record, []

    def after_another_run(self, system, systems):
        if not other:
            other.append("under way")
            other[0] = graft_eval()
        return record_score(self, system, systems)

    monkeypatch.setattr(Scorekeeper, "record", after_another_run)
    first = graft_eval()
    assert first.exit_code == other[0].exit_code == 0, first.output
    assert {row["id"] for row in json.loads(first.stdout)} == {row["id"] for row in json.loads(other[0].stdout)}
    assert [len(shelf.evaluations(name)) for name in ("ann/lora", "bob/ia3")] == [1, 1]


def test_a_shelf_of_which_a_part_is_not_ours_is_scored_whole(graft_eval, shelf, monkeypatch):
    write = Registry.record_evaluation

    def forbidding(self, evaluation, *, user=""):
        if evaluation.repo == "bob/ia3":
            raise ForbiddenError("ann may not write under 'bob'.")
        return write(self, evaluation, user=user)

    monkeypatch.setattr(Registry, "record_evaluation", forbidding)
    done = graft_eval()
    assert done.exit_code == 0 and names(done) == ["", "ann/lora", "bob/ia3"]
    assert done.stderr.splitlines()[-1].startswith("note: measured and shown, but not recorded: bob/ia3 (ann may not")
    assert len(shelf.evaluations("ann/lora")) == 1 and not shelf.evaluations("bob/ia3")
    asked = graft_eval("--adapters", "bob/ia3")
    assert asked.exit_code == 1 and "error: bob/ia3: ann may not write under 'bob'." in asked.stderr


def test_one_that_is_refused_is_said_at_once_and_ends_nothing(graft_eval, monkeypatch):
    submit = Engine.submit

    def refusing(self, request, sink=None):
        stream = submit(self, request, sink)
        if request.model and request.model.startswith("ann/"):
            monkeypatch.setattr(stream, "result", lambda: (_ for _ in ()).throw(ForbiddenError("its proof fails.")))
        return stream

    monkeypatch.setattr(Engine, "submit", refusing)
    done = graft_eval()
    lines = done.stderr.splitlines()
    assert done.exit_code == 1 and names(done) == ["", "bob/ia3"]
    assert lines[1].startswith("refused: ann/lora@") and "its proof fails" in lines[-1]


def test_a_recorded_evaluation_is_run_again_by_its_id(graft_eval, shelf, base_folder, tmp_path):
    rows = {row["name"]: row for row in json.loads(graft_eval().stdout)}
    kept = shelf.evaluation(rows["ann/lora"]["id"])
    assert kept.source == "graft" and kept.who and kept.engine.startswith("graft ")
    assert len(kept.predictions_hash) == 64 and kept.data_hash == shelf.task("letters").data_hash

    def verify(id, *words):
        place = ["--registry", str(tmp_path / "registry.db"), "--base", str(base_folder)]
        return CliRunner().invoke(main, ["eval", "--verify", str(id), *place, *words])

    shelf.add_task("letters", "accuracy", json.dumps(ROWS[0]).encode() + b"\n", "another set by now")
    same = verify(kept.id, "--json")
    assert same.exit_code == 0 and json.loads(same.stdout)["same"] is True, same.output
    assert f"Evaluation {rows[None]['id']} is the same: accuracy" in verify(rows[None]["id"]).stderr
    shelf.db.execute("UPDATE evaluations SET predictions_hash = ? WHERE id = ?", ["0" * 64, kept.id])
    differs = verify(kept.id)
    assert differs.exit_code == 1 and "differs" in differs.stderr and "from other answers" in differs.stderr
    shelf.db.execute("UPDATE evaluations SET value = 0.123, predictions_hash = NULL WHERE id = ?", [kept.id])
    assert verify(kept.id).exit_code == 1
    (tmp_path / "other.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    assert "was measured on the data" in verify(kept.id, "--data", str(tmp_path / "other.jsonl")).stderr
    assert "no evaluation 999" in verify(999).stderr
    neither = CliRunner().invoke(main, ["eval", "--base", str(base_folder)])
    assert neither.exit_code == 2 and "--verify ID" in neither.output


def test_scores_on_other_examples_are_no_measurements_of_the_task(graft_eval, shelf):
    done = graft_eval("--limit", "2")
    assert "kept as self-reported, and not ranked: (bare base), ann/lora, bob/ia3 (these are not all" in done.stderr
    assert [row.source for row in shelf.evaluations("ann/lora")] == ["self-reported"]
    assert shelf.leaderboard("letters") == []


@pytest.fixture
def hub_url(shelf) -> Iterator[str]:
    """A hub over the shelf."""
    server = http_server(create_app(shelf), "127.0.0.1", 0, threads=4)
    threading.Thread(target=server.run, daemon=True).start()
    yield f"http://127.0.0.1:{server.effective_port}"


def test_an_admin_scores_all_of_a_hub(shelf, base_folder, tmp_path, hub_url, monkeypatch):
    """What is listed by its base's fingerprint and by its id alone, of whatever namespace; what is private is not seen."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    publish(shelf, tiny_base("llama"), tmp_path, "cat/bitfit", 2)
    publish(shelf, tiny_base("llama"), tmp_path, "dan/lora", 3)
    shelf.set_private("dan/lora", True)
    monkeypatch.setenv("HF_TOKEN", first_admin(shelf.db, "root"))
    words = ["eval", "--task", "letters", "--base", str(base_folder), "--device", "cpu", "--dtype", "float32", "--json"]
    done = CliRunner().invoke(main, [*words, "--hub", hub_url])
    assert done.exit_code == 0, done.output
    assert names(done) == ["", "ann/lora", "bob/ia3", "cat/bitfit"]
    board = shelf.leaderboard("letters")
    assert {row.evaluation.repo for row in board} == {None, "ann/lora", "bob/ia3", "cat/bitfit"}
    assert {row.evaluation.who for row in board} == {"root"}
    again = CliRunner().invoke(main, [*words, "--hub", hub_url])
    assert again.exit_code == 0 and "3 of 3 adapters are scored" in again.stderr
    monkeypatch.setenv("HF_TOKEN", create_token(shelf.db, "ann", "write"))
    ours = CliRunner().invoke(main, [*words, "--hub", hub_url, "--again"])
    assert ours.exit_code == 0 and names(ours) == ["", "ann/lora", "bob/ia3", "cat/bitfit"]
    assert "not recorded: (bare base), bob/ia3, cat/bitfit" in ours.stderr, ours.stderr
