"""Ctrl-C while training: what is said, what it costs, and what it never breaks."""

import os
import signal
import time
from dataclasses import replace

import pytest

from graft.hub.adapters.artifact import load_artifact
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import training_folder
from graft.trainer.training import run as run_module
from graft.trainer.training.checkpoints import kept_step, save_checkpoint
from graft.trainer.training.run import train
from tests.trainer.cases import RECIPE, Watching, plan

SAID_S = 10.0  # a thread says it, at once


def ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)


def ctrl_c_and_wait(said):
    """A watcher's look that presses Ctrl-C and goes on once something is said."""

    def look(learner):
        ctrl_c()
        deadline = time.monotonic() + SAID_S
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)

    return look


@pytest.mark.parametrize(
    "every, costs",
    [
        (None, "loses 3 steps made so far: there is no checkpoint yet."),
        (2, "loses the step made since the checkpoint of step 2."),
    ],
)
def test_the_first_says_at_once_what_a_second_costs(llama, data, tmp_path, every, costs):
    said = []
    watchers = [Watching(ctrl_c_and_wait(said), at_step=3)]
    with pytest.raises(KeyboardInterrupt):
        train(
            llama, [plan(data, tmp_path / "out")], RunConfig(checkpoint_every=every), watchers=watchers, say=said.append
        )
    assert said == [f"Interrupted: finishing step 3 and saving. Ctrl-C again ends at once and {costs}"]
    assert kept_step(tmp_path / "out") == 3


def test_a_second_one_leaves_the_checkpoint_before(llama, data, tmp_path):
    def twice(learner):
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        train(llama, [plan(data, tmp_path / "out")], RunConfig(checkpoint_every=1), watchers=[Watching(twice, 3)])
    assert kept_step(tmp_path / "out") == 2
    with pytest.raises(KeyboardInterrupt):
        train(llama, [plan(data, tmp_path / "none")], watchers=[Watching(twice, 3)])
    assert not training_folder(tmp_path / "none").exists() and kept_step(tmp_path / "none") == 0


def test_one_that_comes_while_saving_waits_for_it(llama, data, tmp_path, monkeypatch):
    def saving(learner, out, told, save):
        ctrl_c()
        save_checkpoint(learner, out, told, save)

    monkeypatch.setattr(run_module, "save_checkpoint", saving)
    with pytest.raises(KeyboardInterrupt):
        train(llama, [plan(data, tmp_path / "out")], watchers=[Watching(ctrl_c, at_step=2)])
    assert kept_step(tmp_path / "out") == 2


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_an_end_in_the_last_scores_keeps_what_is_trained_and_no_second_copy(llama, data, tmp_path, monkeypatch, end):
    finish = run_module._finish

    def interrupted(base, job, *rest):
        if job.plan.method == "bitfit":
            raise end
        return finish(base, job, *rest)

    adapters = [plan(data, tmp_path / method, method) for method in ("ia3", "bitfit")]
    with monkeypatch.context() as patch, pytest.raises(end):
        patch.setattr(run_module, "_finish", interrupted)
        train(llama, adapters)
    assert not training_folder(tmp_path / "ia3").exists() and kept_step(tmp_path / "bitfit") == RECIPE.steps
    train(llama, adapters, resume=True, overwrite=False)
    assert load_artifact(tmp_path / "bitfit", llama.spec)


def test_resuming_counts_from_the_checkpoint(llama, data, tmp_path):
    adapter = plan(data, tmp_path / "out", recipe=replace(RECIPE, steps=6))
    with pytest.raises(KeyboardInterrupt):
        train(llama, [adapter], watchers=[Watching(ctrl_c, at_step=2)])
    said = []
    watchers = [Watching(ctrl_c_and_wait(said), at_step=4)]
    with pytest.raises(KeyboardInterrupt):
        train(llama, [adapter], watchers=watchers, resume=True, say=said.append)
    assert "finishing step 4 and saving" in said[-1] and "loses 2 steps made since the checkpoint of step 2" in said[-1]
