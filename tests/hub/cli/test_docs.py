"""Every command that docs/hub.md shows, run in its order."""

import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from click.testing import CliRunner

from graft.hub.cli.main import main
from graft.hub.registry.registry import Registry

DOC = Path(__file__).parents[3] / "docs" / "hub.md"


def test_the_documented_commands_run(tmp_path: Path, monkeypatch, base_spec, lora_folder) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    Registry(tmp_path / "registry.db").add_base(base_spec())
    lora_folder(tmp_path / "news-lora")
    lora_folder(tmp_path / "news-lora-2", seed=1, rank=8)
    (tmp_path / "eval.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    lines = re.findall(r"^\$ graft (.+)$", DOC.read_text().replace("7860", port), re.MULTILINE)
    assert len(lines) > 15
    background = []
    try:
        for line in lines:
            words = shlex.split(line.removesuffix(" &"))
            if line.endswith("&"):
                command = [sys.executable, "-m", "graft.hub.cli.main", *words]
                background.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
                wait_for(f"http://127.0.0.1:{port}/health")
                continue
            done = CliRunner().invoke(main, words)
            assert done.exit_code == 0, (line, done.output)
    finally:
        for process in background:
            process.terminate()
            process.wait()


def wait_for(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")
