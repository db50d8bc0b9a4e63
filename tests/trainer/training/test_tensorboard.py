"""`graft train --tensorboard`: what an event file holds is what happened."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from graft.hub.errors import GraftError
from graft.trainer import train
from graft.trainer.training.tensorboard import Board
from tests.trainer.cases import plan
from tests.trainer.commands.test_commands import FAST, graft


def logged(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_every_adapter_has_a_run_of_its_own(llama, data, held_out, tmp_path):
    adapters = [
        plan(data, tmp_path / "a", eval_data=held_out, name="../twin"),
        plan(data, tmp_path / "b", "prefix", name="../twin"),
    ]
    kept = {}

    class Keep:
        def stepped(self, learner, seconds):
            kept.setdefault(id(learner), []).append(seconds)

        def evaluated(self, learner, score):
            kept["score"] = score

        def round_ended(self, learners):
            kept["learners"] = list(learners)

    with Board(tmp_path / "logs") as board:
        train(llama, adapters, watchers=[board, Keep()])
    folders = sorted((tmp_path / "logs").iterdir())
    assert [folder.name for folder in folders] == ["..-twin", "..-twin-1"]
    first, second = map(logged, folders)
    learner = kept["learners"][0]
    assert [point.step for point in first["train/loss"]] == [1, 2, 3, 4]
    assert [point.value for point in first["train/loss"]] == pytest.approx(
        [point["loss"] for point in learner.progress.history], rel=1e-5
    )
    speeds = [point.value for point in first["train/tokens_per_second"]]
    tokens = [speed * seconds for speed, seconds in zip(speeds, kept[id(learner)], strict=True)]
    assert sum(tokens) == pytest.approx(learner.progress.tokens, rel=1e-4)
    assert first["train/peak_memory_bytes"][-1].value > 1 << 20
    assert first["eval/accuracy"][-1].value == pytest.approx(kept["score"].value)
    assert "eval/accuracy" not in second and "train/learning_rate" in second


def test_the_command_writes_logs(base_folder, data, tmp_path):
    flags = ["--base", base_folder, "--method", "lora", "--data", data, "--out", tmp_path / "out", *FAST]
    done = graft("train", *flags, "--tensorboard", tmp_path / "logs")
    assert done.exit_code == 0, done.output
    assert len(logged(tmp_path / "logs" / "out")["train/loss"]) == 2


def test_without_the_package_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(GraftError, match="needs the package tensorboard"):
        Board(tmp_path)
