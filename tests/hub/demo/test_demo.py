"""The demo's parts: ports, the time that is left, what its folder remembers, and how it runs commands."""

import io
import os
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner
from rich.console import Console

from graft.hub.cli.main import main
from graft.hub.demo import stages
from graft.hub.demo.lock import hold_folder
from graft.hub.demo.notebook import Notebook
from graft.hub.demo.pace import Pace, StageWork, duration_words
from graft.hub.demo.running import CommandRunner, _wait, hear_termination
from graft.hub.demo.servers import ports
from graft.hub.demo.story import SHORT, WHOLE
from graft.hub.demo.teller import Teller
from graft.hub.errors import GraftError
from graft.trainer.plan.plan import check_plan, read_plan

SETTINGS = {"short": True, "seed": 0, "dtype": None}


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_and_a_folder_that_can_not_be_written_are_found_at_once(taken, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    for wanted in (taken, taken - 1):
        with pytest.raises(GraftError, match=f"Port {taken} is taken"):
            ports(wanted)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["demo", "--folder", str(tmp_path / "file" / "demo")])
    assert done.exit_code == 1 and "choose another --folder" in done.output
    assert not (tmp_path / "cache" / "packages").exists()


def test_without_a_wish_the_first_free_pair_is_taken():
    server, hub = ports(None)
    assert hub == server + 1 and 8000 <= server < 8090


def test_the_folder_remembers_its_settings_and_who_was_refused(tmp_path):
    notes = Notebook(tmp_path, SETTINGS)
    first, second, _ = SHORT.entries
    for entry in (first, second):
        notes.adapter(entry).mkdir()
        (notes.adapter(entry) / "graft.json").write_text("{}")
    notes.note_refusals({first.repo: "bad"})
    again = Notebook(tmp_path, SETTINGS)
    assert again.forget_refusals(SHORT.entries) == [first]
    assert not again.is_trained(first) and again.is_trained(second)
    with pytest.raises(GraftError, match=r"made with other settings \(short True, seed 0"):
        Notebook(tmp_path, SETTINGS | {"seed": 1})


def test_a_folder_is_one_run_s_until_all_that_it_started_has_ended(tmp_path):
    with hold_folder(tmp_path) as lock:
        runner = CommandRunner(Console(file=io.StringIO()), tmp_path / "log", lock)
        left = runner.start(("hub", "serve", "--registry", str(tmp_path / "new.db"), "--port", "0"), None, None)
        with pytest.raises(GraftError, match="Another run works in"), hold_folder(tmp_path):
            pass
    try:
        with pytest.raises(GraftError, match="a killed one left behind"), hold_folder(tmp_path):
            pass
    finally:
        left.kill()
        left.wait()
    with hold_folder(tmp_path):
        pass


def test_time_left_is_told_only_when_it_was_measured():
    out = Console(file=io.StringIO(), width=200)
    teller = Teller(out, {"train": StageWork(trained=900, heavy=1), "evaluate": StageWork(read=600, heavy=1)})
    with teller.stage("train", "Training"):
        teller.pace = Pace().learn(letters_per_s=10, heavy_s=5, light_s=1)
    with teller.stage("evaluate", "Evaluating"):
        pass
    first, second = out.file.getvalue().splitlines()
    assert first == "[1/2] Training"
    assert second == "[2/2] Evaluating  (about 35 s; to the end about 35 s)"
    assert list(teller.seconds) == ["train", "evaluate"]
    assert [duration_words(seconds) for seconds in (1, 43, 60, 124)] == ["5 s", "45 s", "1 min", "2 min 5 s"]


def test_a_log_hears_once_a_minute_how_long_training_takes(monkeypatch):
    out, now = Console(file=io.StringIO(), width=200), [1000.0]
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])
    hears = stages._TimeLeft(Teller(out, {}))
    for second in range(0, 90, 15):
        now[0] = 1000.0 + second
        hears(f"loss 1.0  {90 - second} s left\n")
    hears("saving\n")
    assert out.file.getvalue().splitlines() == [
        "training takes about 1 min 30 s more",
        "training takes about 30 s more",
    ]


def test_what_saving_took_is_no_part_of_a_start(tmp_path):
    notes, console = Notebook(tmp_path, SETTINGS), Console(file=io.StringIO())
    demo = stages.Demo(SHORT, notes, CommandRunner(console, tmp_path / "log"), Teller(console, {}), 0, None)
    notes.data("news-topic", "train").parent.mkdir()
    notes.data("news-topic", "train").write_text("x" * 600)
    for number, entry in enumerate(SHORT.entries):
        notes.adapter(entry).mkdir()
        facts = notes.adapter(entry) / "graft.json"
        facts.write_text('{"seconds": 90, "tokens": 100, "dtype": "float32"}')
        os.utime(facts, (1000 + 10 * number,) * 2)
    stages._learn_pace(demo, list(SHORT.entries), wall_s=128)
    assert demo.teller.pace == Pace(letters_per_s=20, heavy_s=8)


@pytest.mark.parametrize("story", [WHOLE, SHORT])
def test_the_plan_is_one_that_graft_train_takes(story, tmp_path, monkeypatch):
    notes = Notebook(tmp_path, SETTINGS)
    console = Console(file=io.StringIO())
    demo = stages.Demo(story, notes, CommandRunner(console, tmp_path / "log"), Teller(console, {}), 7, "float32")
    base = tmp_path / "base"
    base.mkdir()
    monkeypatch.setattr(stages.Demo, "base", property(lambda self: str(base)))
    (tmp_path / "plan.toml").write_text("\n".join(stages._plan_lines(demo, list(story.entries))))
    plan = read_plan(tmp_path / "plan.toml")
    check_plan(plan)
    assert [adapter.label for adapter in plan.adapters] == [entry.name for entry in story.entries]
    assert {adapter.recipe.seed for adapter in plan.adapters} == {7} and plan.run.dtype == "float32"
    places = {"lora": "weights", "series": "sublayer", "parallel": "sublayer", "prefix": "input", "prompt": "input"}
    assert {places.get(entry.method) for entry in story.entries} >= {"weights", "sublayer", "input"}


def test_a_command_that_fails_gives_its_own_reason(tmp_path):
    runner = CommandRunner(Console(file=io.StringIO()), tmp_path / "log")
    done = runner.try_("search", "--registry", str(tmp_path / "none.db"))
    assert done.code == 1 and done.reason.startswith("There is no registry") and done.answer is None
    with pytest.raises(GraftError, match="`graft search` failed: There is no registry"):
        runner.run("search", "--registry", str(tmp_path / "none.db"))
    assert "$ graft search" in (tmp_path / "log").read_text()


def test_what_is_interrupted_may_save_its_work_first(tmp_path):
    saving = "import signal, sys, time\nsignal.signal(signal.SIGINT, lambda *_: (time.sleep(0.5), open(sys.argv[1], 'w'), sys.exit()))\nprint('up', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", saving, str(tmp_path / "saved")], stdout=subprocess.PIPE)
    process.stdout.readline()
    previous = signal.getsignal(signal.SIGTERM)
    hear_termination()
    with pytest.raises(KeyboardInterrupt):
        _wait(process, lambda: signal.raise_signal(signal.SIGTERM))
    assert process.returncode == 0 and (tmp_path / "saved").exists()
    signal.signal(signal.SIGTERM, previous)
