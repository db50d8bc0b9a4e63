"""`graft eval --ray`: the scores of one machine, each recorded once, whoever is killed on the way."""

import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner

from graft.hub.base.manifest import record
from graft.hub.cli.main import main
from graft.hub.registry.registry import Registry
from tests.conftest import tiny_base
from tests.ray_cluster import busy_workers, kill, wait_for
from tests.server.conftest import write_folder

CARD = "---\ntags:\n- task:letters\n---\nA card.\n"
KINDS = ("lora", "ia3", "prompt", "prefix")
LONG = "abcdefg " * 40  # cut to the room that the longest virtual prompt leaves


@pytest.fixture
def base_folder(tmp_path):
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    record(tmp_path / "base", base.spec)
    return tmp_path / "base"


def make_shelf(tmp_path, adapters, rows):
    """A registry with a task, and an adapter NS/NAME of a kind each."""
    data = [{"prompt": f"{LONG * (i % 2)}{i}?", "completion": " yes", "labels": [" yes", " no"]} for i in range(rows)]
    registry, base = Registry(tmp_path / "registry.db"), tiny_base("llama")
    registry.add_task("letters", "accuracy", "".join(json.dumps(row) + "\n" for row in data).encode(), "")
    registry.add_base(base.spec)
    for seed in range(adapters):
        folder = write_folder(tmp_path / f"folder-{seed}", KINDS[seed % len(KINDS)], base, seed)
        (folder / "README.md").write_text(CARD)
        registry.publish(folder, f"ann/{KINDS[seed % len(KINDS)]}-{seed}")
    return registry


def words(tmp_path, *more):
    place = [
        "--registry",
        tmp_path / "registry.db",
        "--base",
        tmp_path / "base",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    return [str(word) for word in ("eval", "--task", "letters", *place, *more)]


def graft(tmp_path, *more):
    return CliRunner().invoke(main, words(tmp_path, *more))


def numbers(rows):
    """What no machine's speed changes."""
    keys = ("repo", "revision", "digest", "value", "low", "high", "n", "predictions_hash", "extra", "engine", "source")
    return {row["repo"]: {key: row[key] for key in keys} for row in rows}


def recorded(registry, *repos):
    return {repo: len(registry.evaluations(repo)) for repo in repos}


@pytest.mark.parametrize("place", ["local", pytest.param("two nodes", marks=pytest.mark.slow)])
def test_an_evaluation_on_ray_has_the_numbers_of_one_machine(place, request, base_folder, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    address = place if place == "local" else request.getfixturevalue("ray_address")
    registry = make_shelf(tmp_path, 4, rows=6)
    here = graft(tmp_path, "--json")
    assert here.exit_code == 0, here.output
    # In a process of its own, as a user has it: Ray can't start a cluster in one that was part of another.
    command = [sys.executable, "-m", "graft.hub.cli.main", *words(tmp_path, "--json", "--again", "--ray")]
    spread = subprocess.run([*command, "--ray-address", address], capture_output=True, text=True)
    assert spread.returncode == 0, spread.stderr
    one, many = numbers(json.loads(here.stdout)), numbers(json.loads(spread.stdout))
    assert one == many and len(one) == 5 and one["ann/lora-0"]["extra"].keys() == {"systems", "p_vs_base"}
    assert set(recorded(registry, *(name for name in one if name)).values()) == {2}
    with monkeypatch.context() as patch:
        patch.setattr("graft.hub.machine.ray_tasks.Cluster.__enter__", None)  # nothing is left to score
        known = graft(tmp_path, "--json", "--ray", "--ray-address", address)
    assert known.exit_code == 0 and "4 of 4 adapters are scored on this data already" in known.stderr


def test_flags_that_say_nothing_together_are_refused(tmp_path, base_folder):
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    make_shelf(tmp_path, 1, rows=1)
    alone = graft(tmp_path, "--ray-address", "127.0.0.1:1")
    assert alone.exit_code == 2 and "--ray-address says how --ray spreads: add --ray" in alone.stderr
    verify = CliRunner().invoke(main, ["eval", "--verify", "1", "--base", str(base_folder), "--ray"])
    assert verify.exit_code == 2 and "--verify runs one evaluation, which --ray can't spread" in verify.stderr


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_no_score(ray_address, base_folder, tmp_path):
    registry = make_shelf(tmp_path, 6, rows=200)
    command = [sys.executable, "-m", "graft.hub.cli.main", *words(tmp_path, "--ray", "--ray-address", ray_address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        wait_for(busy_workers)
        kill(busy_workers()[0])
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0 and "died" in output and "once more" in output, output
    assert set(recorded(registry, *(f"ann/{KINDS[i % 4]}-{i}" for i in range(6))).values()) == {1}


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_what_is_recorded_and_the_same_command_goes_on(
    ray_address, base_folder, tmp_path
):
    registry = make_shelf(tmp_path, 8, rows=200)
    names = [f"ann/{KINDS[i % 4]}-{i}" for i in range(8)]
    command = [sys.executable, "-m", "graft.hub.cli.main", *words(tmp_path, "--ray", "--ray-address", ray_address)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: sum(recorded(registry, *names).values()) or driver.poll() is not None)
        os.kill(driver.pid, signal.SIGKILL)
    before = recorded(registry, *names)
    assert 0 < sum(before.values()) < 8
    rest = graft(tmp_path, "--json", "--ray", "--ray-address", ray_address)
    assert rest.exit_code == 0, rest.output
    assert f"{sum(before.values())} of 8 adapters are scored on this data already" in rest.stderr
    assert set(recorded(registry, *names).values()) == {1}
    bare = [row for row in registry.leaderboard("letters") if row.evaluation.repo is None]
    assert len(bare) == 1
    here = graft(tmp_path, "--json", "--again")
    drop = {"extra"}  # how many systems a run has is another number in what was left
    one, many = (
        {name: {key: value for key, value in row.items() if key not in drop} for name, row in numbers(rows).items()}
        for rows in (json.loads(here.stdout), json.loads(rest.stdout))
    )
    assert one == many


@pytest.mark.slow
def test_a_base_that_is_another_one_there_is_refused(ray_address, base_folder, tmp_path):
    make_shelf(tmp_path, 1, rows=2)
    other = tiny_base("llama", seed=9)
    other.model.save_pretrained(
        base_folder
    )  # beside the manifest of the one before: as a node has it that missed an update
    done = graft(tmp_path, "--ray", "--ray-address", ray_address)
    assert done.exit_code == 1 and "would give other numbers" in done.stderr and "Traceback" not in done.output
    assert "Import the same base on every node" in done.stderr
