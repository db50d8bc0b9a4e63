"""Every command and the Python of docs/training.md, run in their order on a tiny base."""

import re
import shlex
import shutil
from pathlib import Path

from click.testing import CliRunner

from graft.hub.cli.main import main

DOC = Path(__file__).parents[3] / "docs" / "training.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", DOC.read_text(), re.MULTILINE | re.DOTALL)


def test_the_documented_commands_run(base_folder, data, held_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base_folder, "base")
    assert data.name == "train.jsonl" and held_out.name == "test.jsonl"
    (plan,) = blocks("toml")
    Path("plan.toml").write_text(plan)
    commands = [line.removeprefix("$ graft ") for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        done = CliRunner().invoke(main, shlex.split(command))
        assert done.exit_code == 0, (command, done.output)
    (code,) = blocks("python")
    exec(code, {})  # the page's own text
    for made in ("news-lora", "news-dora", "news-r4", "news-prefix", "news-python", "comparison/prompt"):
        assert (tmp_path / made / "adapter_model.safetensors").exists(), made
