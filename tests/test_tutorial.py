"""Every command of README's five minutes and of docs/tutorial.md, run in their order: on a tiny base, and on the real one."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from graft.hub.base.manifest import record
from graft.hub.base.model import with_id
from graft.hub.base.named_bases import NAMED_BASES
from graft.hub.cli.main import main
from tests.conftest import tiny_base

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/tutorial.md")
READY = {"serve": "/ready", "hub": "/health"}


def text_of(page: str, ports: tuple[int, int]) -> str:
    text = (ROOT / page).read_text()
    return text.replace(":8000", f":{ports[0]}").replace("7860", str(ports[1]))


def commands(text: str) -> list[str]:
    return re.findall(r"^\$ (.+)$", text, re.MULTILINE)


def code(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """Where a reader stands: a folder with examples/ in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    return tmp_path


@pytest.fixture
def tiny_smollm2(tmp_path, monkeypatch) -> None:
    """A tiny base where `graft base import smollm2` would put the real one."""
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    base, named = tiny_base("llama"), NAMED_BASES["smollm2"]
    base.model.save_pretrained(named.folder)
    base.tokenizer.save_pretrained(named.folder)
    record(named.folder, with_id(base.spec, named.id))


def in_background(words: list[str], ports: tuple[int, int]) -> subprocess.Popen:
    port = ports[words[0] == "hub"]
    process = subprocess.Popen([sys.executable, "-m", "graft.hub.cli.main", *words, "--port", str(port)])
    for _ in range(600):
        assert process.poll() is None, words
        try:
            if httpx.get(f"http://127.0.0.1:{port}{READY[words[0]]}").is_success:
                return process
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{words} never answered")


def follow(page: str, ports: tuple[int, int]) -> dict[str, str]:
    """Type every command of the page, then run its Python; what each said."""
    text, said, background = text_of(page, ports), {}, []
    try:
        for line in commands(text):
            words = shlex.split(line.removesuffix(" &"))
            if line.endswith(" &"):
                background.append(in_background(words[1:], ports))
            elif words[0] == "graft":
                done = CliRunner().invoke(main, words[1:])
                assert done.exit_code == 0, (line, done.output)
                said[line] = done.output
            else:
                said[line] = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        for block in code(text):
            exec(block, {})
    finally:
        for process in background:
            process.terminate()
            process.wait()
    return said


@pytest.mark.parametrize("page", PAGES)
def test_every_line_runs_on_a_tiny_base(page, clone, tiny_smollm2, ports, capsys):
    said = follow(page, ports)
    assert len(said) >= 8
    assert all("Traceback" not in output for output in said.values())
    promoted = [output for line, output in said.items() if line.startswith("graft promote")]
    assert promoted and all("production" in output for output in promoted)
    answered = [output for line, output in said.items() if line.startswith("curl")]
    assert all('"choices"' in output for output in answered), answered
    assert "me/tickets" in capsys.readouterr().out  # what the Python printed


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten minutes of two cores, where others have a part of them
def test_the_tutorial_on_the_real_base(clone, ports):
    """The base is fetched where it is not in the cache; the adapters learn the task."""
    os.environ.pop("OMP_NUM_THREADS", None)
    said = follow("docs/tutorial.md", ports)
    [board] = [output for line, output in said.items() if line.startswith("graft eval")]
    score = {name: float(value) for name, value in re.findall(r"(me/\S+|\(bare base\))\s+│\s+([\d.]+)", board)}
    assert score["me/tickets-lora"] > score["(bare base)"] + 0.2 and score["me/tickets-lora"] > 0.7, board
    [answer] = [output for line, output in said.items() if line.startswith("curl")]
    assert "shipping" in answer, answer
