"""`graft train --plan --ray` and `graft compare --ray`: the numbers of training alone, whoever is killed on the way."""

import json
import os
import signal
import subprocess
import sys

import pytest

from graft.hub.adapters.artifact import load_artifact
from graft.hub.base.model import load_base
from graft.trainer.training.checkpoints import kept_step
from tests.ray_cluster import busy_workers, kill, wait_for
from tests.trainer.commands.test_commands import FAST, graft
from tests.trainer.reports.test_comparison import numbers

METHODS = {"lora": "{ r = 2 }", "prompt": "{ tokens = 3 }", "last-layers": "{ layers = 1 }"}


def write_plan(folder, base, data, held_out, *, methods=METHODS, steps=4, more=""):
    """A plan for folder/METHOD each; its path."""
    folder.mkdir()
    tables = [f'[[adapter]]\nmethod = "{name}"\nout = "{folder}/{name}"\nset = {METHODS[name]}' for name in methods]
    head = f'base = "{base}"\ndtype = "float32"\n{more}\n[defaults]\ndata = "{data}"\neval_data = "{held_out}"'
    plan = folder / "plan.toml"
    plan.write_text("\n".join([head, f"steps = {steps}\nbatch_size = 3\nlearning_rate = 1e-2", *tables]))
    return plan


def weights(folder):
    """The bytes of what was trained."""
    (file,) = folder.glob("*.safetensors")
    return file.read_bytes()


def trained_alone(base, data, held_out, folder, **fields):
    """Each method's weights, trained alone in this process."""
    found = {}
    for method in fields.pop("methods", METHODS):
        plan = write_plan(folder / f"alone-{method}", base, data, held_out, methods=[method], **fields)
        assert graft("train", "--plan", plan).exit_code == 0
        found[method] = weights(plan.parent / method)
    return found


@pytest.mark.slow
def test_a_plan_over_two_nodes_is_each_trained_alone_bit_for_bit(ray_address, base_folder, data, held_out, tmp_path):
    plan = write_plan(tmp_path / "spread", base_folder, data, held_out)
    done = graft("train", "--plan", plan, "--ray", "--ray-address", ray_address, "--json")
    assert done.exit_code == 0, done.output
    outcomes = json.loads(done.stdout)
    assert [outcome["name"] for outcome in outcomes] == list(METHODS)
    assert [outcome["folder"] for outcome in outcomes] == [str(tmp_path / "spread" / name) for name in METHODS]
    alone = trained_alone(base_folder, data, held_out, tmp_path)
    assert {name: weights(tmp_path / "spread" / name) for name in METHODS} == alone
    artifact = load_artifact(tmp_path / "spread" / "lora", load_base(base_folder, device="cpu").spec)
    assert artifact.provenance["name"] == "lora" and artifact.provenance["data"]["train"]["file"] == data.name
    assert sorted(path.name for path in (tmp_path / "spread").iterdir()) == sorted([*METHODS, "plan.toml"])


def test_flags_that_say_nothing_together_are_refused(base_folder, data, held_out, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install grafthub[ray]")
    plan = write_plan(tmp_path / "p", base_folder, data, held_out)
    for words, why in (
        (("train", "--ray", "--base", base_folder), "--ray spreads the adapters of a plan"),
        (("train", "--plan", plan, "--ray", "--tensorboard", "logs"), "--tensorboard can't follow"),
        (("train", "--plan", plan, "--ray-cpus", "2"), "--ray-cpus says how --ray spreads: add --ray"),
    ):
        done = graft(*words)
        assert done.exit_code == 2 and why in done.stderr
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", tmp_path / "out"]
    both = graft("compare", *flags, "--ray", "--together")
    assert both.exit_code == 2 and "leave one of them out" in both.stderr


@pytest.mark.slow
def test_a_comparison_over_two_nodes_has_the_rows_of_one_machine(ray_address, base_folder, data, held_out, tmp_path):
    flags = [
        "--base",
        base_folder,
        "--data",
        data,
        "--eval-data",
        held_out,
        "--methods",
        "lora,ia3,full",
        "--json",
        *FAST,
    ]
    here = graft("compare", *flags, "--out", tmp_path / "here")
    spread = graft("compare", *flags, "--out", tmp_path / "spread", "--ray", "--ray-address", ray_address)
    assert here.exit_code == spread.exit_code == 0, spread.output
    assert numbers(here) == numbers(spread)
    for method in ("lora", "ia3", "full"):
        assert weights(tmp_path / "here" / method) == weights(tmp_path / "spread" / method)
    lines = json.loads(spread.stdout)["lines"]
    assert [line["folder"] for line in lines[1:]] == [str(tmp_path / "spread" / line["method"]) for line in lines[1:]]
    assert not (tmp_path / "spread.training").exists()


@pytest.mark.slow
def test_checkpoints_come_home_and_a_killed_worker_s_training_goes_on_from_the_last(
    ray_address, base_folder, data, held_out, tmp_path
):
    sizes = {"methods": ["lora"], "steps": 300}
    plan = write_plan(tmp_path / "spread", base_folder, data, held_out, **sizes, more="checkpoint_every = 50")
    with start("train", "--plan", plan, "--ray", "--ray-address", ray_address) as driver:
        wait_for(lambda: kept_step(tmp_path / "spread" / "lora") and busy_workers())
        kill(busy_workers()[0])
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0 and "once more" in output and "lora: step 50" in output, output
    assert (
        weights(tmp_path / "spread" / "lora") == trained_alone(base_folder, data, held_out, tmp_path, **sizes)["lora"]
    )
    assert not (tmp_path / "spread" / "lora.training").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_plan_whose_command_is_ended_goes_on_with_resume(ray_address, base_folder, data, held_out, tmp_path, how):
    """Ctrl-C brings home what the workers had; kill -9 leaves the checkpoints that came before."""
    sizes = {"methods": ["lora", "prompt"], "steps": 200}
    plan = write_plan(tmp_path / "spread", base_folder, data, held_out, **sizes, more="checkpoint_every = 50")
    outs = [tmp_path / "spread" / name for name in sizes["methods"]]
    with start("train", "--plan", plan, "--ray", "--ray-address", ray_address) as driver:
        wait_for(lambda: all(map(kept_step, outs)) or driver.poll() is not None)
        os.kill(driver.pid, how)
        output, _ = driver.communicate(timeout=300)
    assert driver.returncode == (1 if how == signal.SIGINT else -signal.SIGKILL), output
    assert not any(out.exists() for out in outs) and all(kept_step(out) >= 50 for out in outs)
    refused = graft("train", "--plan", plan, "--ray", "--ray-address", ray_address)
    assert refused.exit_code == 1 and "holds an interrupted training: --resume continues it" in refused.stderr
    rest = graft("train", "--plan", plan, "--ray", "--ray-address", ray_address, "--resume")
    assert rest.exit_code == 0, rest.output
    assert {out.name: weights(out) for out in outs} == trained_alone(base_folder, data, held_out, tmp_path, **sizes)
    again = graft("train", "--plan", plan, "--ray", "--ray-address", ray_address, "--resume")
    assert again.exit_code == 0 and again.stderr.count("is finished, and taken as it is") == 2, again.output


@pytest.mark.slow
def test_a_checkpoint_that_can_not_be_kept_ends_one_training_and_no_other(
    ray_address, base_folder, data, held_out, tmp_path
):
    sizes = {"methods": ["lora", "prompt"], "steps": 60}
    plan = write_plan(tmp_path / "spread", base_folder, data, held_out, **sizes, more="checkpoint_every = 20")
    (tmp_path / "spread" / "lora.training" / "state.safetensors").mkdir(parents=True)  # where its file is to be
    done = graft("train", "--plan", plan, "--ray", "--ray-address", ray_address, "--resume")
    assert done.exit_code == 1 and "lora.training can't be written" in done.stderr.splitlines()[-1], done.output
    assert (tmp_path / "spread" / "prompt").exists() and not (tmp_path / "spread" / "lora").exists()


@pytest.mark.slow
def test_a_comparison_whose_command_is_killed_goes_on_with_resume(ray_address, base_folder, data, held_out, tmp_path):
    out = tmp_path / "spread"
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--methods", "lora,ia3,prompt,full"]
    flags += ["--json", "--steps", "100", "--batch-size", "3", "--dtype", "float32"]
    ray = ["--out", out, "--ray", "--ray-address", ray_address]
    with start("compare", *flags, *ray) as driver:
        rows = (tmp_path / "spread.training").glob
        wait_for(lambda: len([*rows("*.json")]) >= 2 or driver.poll() is not None)
        os.kill(driver.pid, signal.SIGKILL)
    kept = {path.name: path.read_bytes() for path in rows("*.json")}
    assert 2 <= len(kept) < 5
    rest = graft("compare", *flags, *ray, "--resume")
    assert rest.exit_code == 0, rest.output
    assert f"/{5 - len(kept)}  " in rest.stderr  # only what was left
    assert numbers(rest) == numbers(graft("compare", *flags, "--out", tmp_path / "here"))


def start(*words):
    command = [sys.executable, "-m", "graft.hub.cli.main", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
