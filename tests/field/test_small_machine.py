"""Other machines: no compiler, a home that can't be written, one core, little memory, an old terminal, a new Python."""

import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
import torch

from graft.hub.cli.main import main
from tests.field.conftest import graft

ROOT = Path(__file__).parents[2]
_PR_CAPBSET_DROP, _PASSES_PERMISSIONS = 24, (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
GRAFT = [sys.executable, "-m", "graft.hub.cli.main"]
# Several commands in one process: a start takes seconds. Each is a list of words on a line of its own.
SEVERAL = """
import json, sys
from graft.hub.cli.main import main
for line in sys.stdin:
    try:
        main(json.loads(line), prog_name="graft")
    except SystemExit as end:
        print("ended", end.code, flush=True)
"""


def harsh() -> dict[str, str]:
    """The environment of a poor place: an old locale, a narrow terminal, no compiler, no network."""
    kept = {name: os.environ[name] for name in ("PATH", "GOMP_SPINCOUNT") if name in os.environ}
    poor = {"LANG": "C", "LC_ALL": "C", "COLUMNS": "60", "CXX": "false", "HF_ENDPOINT": "http://127.0.0.1:9"}
    return {**kept, **poor, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def poor() -> None:
    """In a child before it starts: one core, and root, if it is that, heeds permissions as everybody else does."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for capability in _PASSES_PERMISSIONS:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, capability)


@pytest.fixture
def corner():
    """An environment whose home is read-only, and a folder to work in."""
    with tempfile.TemporaryDirectory(prefix="graft étrange ") as top:
        home, work = Path(top) / "home", Path(top) / "work"
        home.mkdir(mode=0o555)
        work.mkdir()
        if subprocess.run(["test", "-w", home], preexec_fn=poor).returncode == 0:
            pytest.skip("root's right to write everywhere can't be dropped here (PR_CAPBSET_DROP is refused)")
        yield {**harsh(), "HOME": str(home)}, work


def test_the_story_in_a_poor_place(place, corner):
    environment, work = corner
    at, base, out = ["--registry", work / "registry.db"], ["--base", place / "base"], work / "ö"
    training = ["--steps", 1, "--eval-data", place / "test.jsonl", "--publish", "me/adapter"]
    story = [
        ["train", *base, *at, "--method", "lora", "--data", place / "train.jsonl", "--out", out, *training],
        ["task", "add", "letters", "--metric", "accuracy", "--data", place / "test.jsonl", *at],
        ["search", *at],
        ["eval", *base, "--task", "letters", "--adapters", "all", *at],
        ["estimate", *base, "--method", "lora,prefix"],
        ["history", "me/adapter", *at],
    ]
    lines = "".join(json.dumps([str(word) for word in words]) + "\n" for words in story)
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL], input=lines, env=environment, cwd=work, preexec_fn=poor,
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.stdout.count("ended 0") == len(story), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list((work.parent / "home").iterdir())


def test_a_server_without_compiler_and_cache(place, corner):
    environment, work = corner
    words = [*GRAFT, "serve", "--base", place / "base", "--adapter", f"mine={place / 'lora'}", "--port", "0"]
    started = subprocess.Popen(
        [str(word) for word in words], env=environment, cwd=work, preexec_fn=poor,
        stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    said = []
    try:
        for line in started.stderr:
            said.append(line)
            if found := re.search(r"ready at (http://\S+)/v1", line):
                break
        else:
            raise AssertionError("".join(said))
        body = json.dumps({"model": "mine", "prompt": "a", "max_tokens": 2, "ignore_eos": True}).encode()
        request = urllib.request.Request(f"{found[1]}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 2
    finally:
        started.terminate()
        rest = started.communicate(timeout=30)[1]
    assert "no fast CPU kernels" in "".join(said) and "Traceback" not in "".join(said) + rest


def test_too_little_memory_is_one_sentence(place, tmp_path):
    limit = 300 << 20
    words = [*GRAFT, "train", "--base", place / "base", "--method", "lora", "--data", place / "train.jsonl"]
    done = subprocess.run(
        [str(word) for word in [*words, "--out", tmp_path / "out", "--steps", "1"]], env=harsh() | {"HOME": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: There is not enough memory"), done.stderr
    assert "Traceback" not in done.stderr


def test_memory_that_torch_misses_is_told_alike(monkeypatch):
    def greedy(*words: object) -> None:
        torch.empty(1 << 50)

    monkeypatch.setattr(main.get_command(None, "search"), "callback", greedy)
    monkeypatch.setattr(main.get_command(None, "search"), "params", [])
    result = graft("search")
    assert result.exit_code == 1 and "error: There is not enough memory" in result.output


@pytest.mark.parametrize(("version", "taken"), [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)])
def test_make_says_which_python_it_needs(monkeypatch, version, taken):
    (check,) = re.findall(r"\$\(PYTHON\) -c '(.*)'", (ROOT / "Makefile").read_text())
    monkeypatch.setattr(sys, "version_info", (*version, 1, "final", 0))
    with pytest.raises(SystemExit) as ended:
        exec(check, {})
    assert (not ended.value.code) == taken
    assert taken or re.fullmatch("graft needs Python 3.11 to 3.14, .* make PYTHON=.*", ended.value.code)


@pytest.mark.parametrize("columns", [60, 80])
def test_an_estimate_can_be_read(place, columns):
    shown = graft("estimate", "--base", place / "base", "--method", "lora,last-layers", COLUMNS=str(columns))
    assert shown.exit_code == 0, shown.output
    assert "…" not in shown.stdout and max(map(len, shown.stdout.splitlines())) <= columns
    if columns == 80:
        assert re.search(r"method +┃ base ┃ master ┃ gradient ┃ optimizer ┃ activation ┃ +peak", shown.stdout)
