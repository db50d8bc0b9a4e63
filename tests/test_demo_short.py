"""`graft demo --short` on the real base: killed on the way and run again, and with an adapter that was made bad.

Two minutes a dtype on two cores; base and data are fetched where they are not in the cache. `.ci/run` calls it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

GRAFT = (sys.executable, "-m", "graft.hub.cli.main")
PORT = os.environ.get("GRAFT_TEST_PORT", "18460")
NAMES = {"demo/news-topic-lora", "demo/news-topic-parallel", "demo/news-topic-prefix"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def words(folder: Path, dtype: str) -> list[str]:
    return [*GRAFT, "demo", "--short", "--folder", str(folder), "--dtype", dtype, "--port", PORT]


def told(folder: Path, dtype: str) -> tuple[int, str, dict]:
    """Run it to its end: exit code, all it said, its report."""
    done = subprocess.run(words(folder, dtype), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout, json.loads((folder / "demo.json").read_text())


def scored(report: dict) -> set[str]:
    return {row["name"] for row in report["scores"]["news-topic"] if row["name"]}


def test_in_bfloat16_from_end_to_end(tmp_path):
    code, said, report = told(tmp_path, "bfloat16")
    assert code == 0 and scored(report) == NAMES and report["refused"] == {}, said
    assert {answer["model"] for answer in report["answers"]} == NAMES | {report["base"]}
    assert all(answer["digest"] for answer in report["answers"] if answer["model"] in NAMES)
    assert report["promoted"]["name"] in NAMES
    stages = [line for line in said.splitlines() if line.startswith("[")]
    assert [line.partition("]")[0] for line in stages] == [f"[{i}/8" for i in range(1, 9)]
    assert "to the end about" in stages[-1] and "waitress" not in said and "httpx" not in said


def killed_in_training(folder: Path) -> None:
    """Start it, and kill it and what it runs as soon as a checkpoint is there."""
    process = subprocess.Popen(words(folder, "float32"), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(list(folder.glob("adapters/*.training"))) < len(NAMES):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def made_bad(folder: Path) -> None:
    """Finish the trainings as the demo would, and give one adapter other weights."""
    subprocess.run([*GRAFT, "train", "--plan", str(folder / "plan.toml"), "--resume"], check=True)
    weights = folder / "adapters" / "news-topic-lora" / "adapter_model.safetensors"
    noise = np.random.default_rng(0)
    save_file({key: noise.standard_normal(value.shape, "f4") for key, value in load_file(weights).items()}, weights)


def test_in_float32_killed_tampered_with_and_run_again(tmp_path):
    killed_in_training(tmp_path)
    made_bad(tmp_path)
    code, said, report = told(tmp_path, "float32")
    assert code == 1 and list(report["refused"]) == ["demo/news-topic-lora"], said
    assert "REFUSED demo/news-topic-lora: " in said and "1 of 3 adapters refused" in said
    assert scored(report) == NAMES - {"demo/news-topic-lora"}
    assert report["promoted"]["name"] in scored(report)
    code, said, report = told(tmp_path, "float32")
    assert code == 0 and scored(report) == NAMES and report["refused"] == {}, said
