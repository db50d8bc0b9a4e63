"""From plans to artifacts: what is written loads, is served as it was trained, and continues bit for bit."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError

import graft.trainer
from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.model_card import reported_scores, split_card, task_of
from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.adapters.probe import read_probe
from graft.hub.adapters.serving_forms import CacheRows
from graft.hub.adapters.validation import inspect_artifact
from graft.hub.errors import DataError, GraftError
from graft.trainer import AdapterPlan, RunConfig, TrainConfig, train
from graft.trainer.artifact.probe import TEXTS
from graft.trainer.data.packing import Pack
from graft.trainer.forward.passes import run_pass, served_forms
from graft.trainer.training import checkpoints as resume_module
from graft.trainer.training import run as run_module
from graft.trainer.training.checkpoints import load_checkpoint, save_checkpoint, training_folder
from graft.trainer.training.run import read_data
from tests.conftest import tiny_base
from tests.trainer.cases import ALL, RECIPE, ROWS, Watching, plan, trainee, write_rows


def test_the_python_interface_is_there():
    assert all(getattr(graft.trainer, name) for name in graft.trainer.__all__)


@pytest.mark.parametrize("method", ALL)
def test_what_is_written_loads_and_is_served_as_it_was_trained(llama, data, held_out, tmp_path, method):
    adapter = plan(data, tmp_path / "out", method, task="letters", eval_data=held_out)
    kept = {}

    def keep(trainee):
        with torch.no_grad():
            kept.update(forms=trainee.forms(llama), batch=trainee.sequences[:4])

    watcher = Watching(keep)
    (outcome,) = train(llama, [adapter], watchers=[watcher])
    artifact = load_artifact(outcome.folder, llama.spec)
    forms = artifact.fold(llama)
    pack = Pack((tuple(kept["batch"]),))
    with torch.no_grad():
        with run_pass(llama, pack, [kept["forms"]]) as (trained, _):
            pass
        with run_pass(llama, pack, [served_forms(llama, forms)]) as (as_served, _):
            pass
    torch.testing.assert_close(trained, as_served, rtol=1e-4, atol=1e-5)
    assert outcome.score.metric == "accuracy" and outcome.score.n == 3


def test_the_folder_says_all_that_is_known(llama, data, held_out, tmp_path):
    adapters = [
        plan(data, tmp_path / "a", task="letters", eval_data=held_out),
        plan(data, tmp_path / "b", "series"),
    ]
    train(llama, adapters)
    found = inspect_artifact(tmp_path / "a", llama.spec)
    assert (found.method, found.task, found.base_fingerprint) == ("lora", "letters", llama.spec.fingerprint)
    assert not found.warnings
    told = json.loads((tmp_path / "a" / "graft.json").read_text())
    assert told["data"]["train"]["examples"] == 12 and len(told["data"]["hash"]) == 64
    assert len(told["history"]) == told["steps"] == 4 and told["versions"]["torch"] == torch.__version__
    assert told["peak_memory_bytes"] > 1 << 20 and told["seconds"] > 0
    card, text = split_card((tmp_path / "a" / "README.md").read_text())
    assert card["base_model"] == "test/llama" and card["library_name"] == "peft" and task_of(card) == "letters"
    (score,) = reported_scores(card)
    assert score["value"] == pytest.approx(told["metrics"]["score"]["value"], abs=1e-4)
    assert split_card((tmp_path / "b" / "README.md").read_text())[0]["library_name"] == "adapters"
    assert "graft serve" in text


@pytest.mark.parametrize("method", ["lora", "ptuning", "prefix"])
def test_the_probe_is_what_the_loaded_adapter_says(llama, data, tmp_path, method):
    train(llama, [plan(data, tmp_path / "a", method)])
    artifact = load_artifact(tmp_path / "a", llama.spec)
    probe = read_probe(artifact.probe, llama.spec.vocab_size)
    assert probe.stored == "float32" and [one.text for one in probe.texts] == list(TEXTS)
    forms = served_forms(llama, artifact.fold(llama))
    prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
    for one in probe.texts:
        ids = torch.tensor(one.asked.ids)
        assert llama.tokenizer(one.text)["input_ids"][: len(ids)] == ids.tolist()
        step = Step(Stack([forms], torch.float32, "cpu"), RowOwners(0, (len(ids),)), lm_head="lm_head")
        positions = torch.arange(len(ids)) + (prefix.text_start if prefix else 0)
        attention = PackedAttention([len(ids)], [prefix], torch.device("cpu"))
        with torch.no_grad():
            logits = llama.forward(llama.embed(ids), positions, attention, step)
        rows = logits[-len(one.asked.tokens) :].log_softmax(-1)
        expected = rows.gather(1, torch.tensor(one.asked.tokens))
        torch.testing.assert_close(expected, torch.tensor(one.adapter), rtol=1e-4, atol=1e-5)
    assert 0 < probe.noise.effect < probe.rounding.effect


@pytest.mark.parametrize("method", ALL)
def test_an_interrupted_training_continues_bit_for_bit(llama, data, tmp_path, method):
    recipe = replace(RECIPE, steps=7)  # past the first epoch of four batches
    adapters = [plan(data, tmp_path / "whole", method, recipe=recipe)]
    train(llama, adapters)
    halted = [replace(adapters[0], out=tmp_path / "halted")]
    ctrl_c = Watching(lambda trainee: os.kill(os.getpid(), signal.SIGINT), at_step=5)
    with pytest.raises(KeyboardInterrupt):
        train(llama, halted, watchers=[ctrl_c])
    assert training_folder(tmp_path / "halted").exists() and not (tmp_path / "halted").exists()
    (outcome,) = train(llama, halted, resume=True)
    assert outcome.steps == 7 and not training_folder(tmp_path / "halted").exists()
    whole, resumed = (load_artifact(tmp_path / name, llama.spec) for name in ("whole", "halted"))
    assert resumed.digest == whole.digest
    assert resumed.provenance["history"] == whole.provenance["history"]


def test_a_kill_between_two_adapters_checkpoints_loses_no_bit(llama, data, tmp_path, monkeypatch):
    """They are saved one after another: both continue from the last save that both have."""
    kinds = ("lora", "prefix")

    def both(where):
        return [plan(data, tmp_path / where / kind, kind, name=kind) for kind in kinds]

    train(llama, both("whole"))
    saved = []

    def killed(learner, out, told, save):
        if len(saved) == 5:  # of the third save, the first adapter's is there
            raise KeyboardInterrupt
        saved.append(out.name)
        save_checkpoint(learner, out, told, save)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_module, "save_checkpoint", killed)
        train(llama, both("killed"), RunConfig(checkpoint_every=1))
    train(llama, both("killed"), resume=True)
    for kind in kinds:
        whole, killed_one = (load_artifact(tmp_path / where / kind, llama.spec) for where in ("whole", "killed"))
        assert killed_one.digest == whole.digest
        assert killed_one.provenance["history"] == whole.provenance["history"]


def test_a_checkpoint_of_another_recipe_is_refused(llama, data, tmp_path):
    adapter = plan(data, tmp_path / "out")
    ctrl_c = Watching(lambda trainee: os.kill(os.getpid(), signal.SIGINT), at_step=2)
    with pytest.raises(KeyboardInterrupt):
        train(llama, [adapter], watchers=[ctrl_c])
    with pytest.raises(GraftError, match="another seed"):
        train(llama, [replace(adapter, recipe=replace(RECIPE, seed=4))], resume=True)


def test_a_checkpoint_of_another_base_is_refused(llama, data, tmp_path):
    adapter = plan(data, tmp_path / "out")
    ctrl_c = Watching(lambda trainee: os.kill(os.getpid(), signal.SIGINT), at_step=2)
    with pytest.raises(KeyboardInterrupt):
        train(llama, [adapter], watchers=[ctrl_c])
    with pytest.raises(GraftError, match="another base"):
        train(tiny_base("llama", seed=1), [adapter], resume=True)


def test_ctrl_c_in_the_last_score_loses_nothing(llama, data, held_out, tmp_path, monkeypatch):
    adapter = plan(data, tmp_path / "out", eval_data=held_out)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "score_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(llama, [adapter])
    trained = []
    train(llama, [adapter], resume=True, watchers=[Watching(trained.append, at_step=1)])
    assert load_artifact(tmp_path / "out", llama.spec) and not trained


def interrupted(*_):
    raise KeyboardInterrupt


def test_a_kill_in_the_middle_of_saving_leaves_the_checkpoint_before(llama, data, tmp_path, monkeypatch):
    learner = trainee(llama, data)
    save_checkpoint(learner, tmp_path / "out", {}, "first")
    monkeypatch.setattr("pathlib.Path.rename", interrupted)
    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(learner, tmp_path / "out", {}, "first")
    assert load_checkpoint(learner, tmp_path / "out", {})


def test_a_checkpoint_on_a_full_disk_says_what_to_do(llama, data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(resume_module, "save_file", full)
    with pytest.raises(GraftError, match=r"checkpoint .* can't be written .*No space left.*Make room"):
        train(llama, [plan(data, tmp_path / "out")], RunConfig(checkpoint_every=1))
    assert not training_folder(tmp_path / "out").exists()


def test_what_could_not_be_saved_for_want_of_room_is_resumed(llama, data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_artifact", full)
        (outcome,) = train(llama, [plan(data, tmp_path / "out")])
    assert "No space left" in outcome.stopped and "--resume" in outcome.stopped
    (outcome,) = train(llama, [plan(data, tmp_path / "out")], resume=True)
    assert outcome.folder == tmp_path / "out" and outcome.steps == RECIPE.steps


def test_early_stopping_keeps_the_best(llama, data, held_out, tmp_path):
    recipe = replace(RECIPE, steps=30, eval_every=1, patience=2, schedule="constant")
    (outcome,) = train(llama, [plan(data, tmp_path / "out", recipe=recipe, eval_data=held_out)])
    told = json.loads((tmp_path / "out" / "graft.json").read_text())
    values = [point["value"] for point in told["evaluations"]]
    assert outcome.score.value == max(values)
    assert outcome.steps < 30 and "stopped early" in outcome.stopped and max(values) == values[-3]


def test_one_that_diverges_leaves_no_artifact_and_the_others_do(llama, data, tmp_path):
    wild = replace(RECIPE, learning_rate=1e38, schedule="constant", warmup=0.0)
    outcomes = train(llama, [plan(data, tmp_path / "wild", recipe=wild), plan(data, tmp_path / "calm")])
    assert outcomes[0].folder is None and "diverged" in outcomes[0].stopped and not (tmp_path / "wild").exists()
    assert outcomes[1].folder == tmp_path / "calm"
    load_artifact(tmp_path / "calm", llama.spec)


@pytest.mark.parametrize(
    "fields, error, words",
    [
        ({"method": "lorra"}, GraftError, "Unknown method 'lorra'.*last-layers"),
        ({"options": {"rank": "8"}}, GraftError, "no option 'rank'.*r=8"),
        ({"options": {"r": "0"}}, GraftError, "greater than 0"),
        ({"options": {"r": "many"}}, GraftError, "r='many' is not a valid value"),
        ({"options": {"targets": "nothing_here"}}, GraftError, "nothing_here"),
        ({"recipe": replace(RECIPE, max_length=4000)}, GraftError, "256 positions"),
        ({"recipe": replace(RECIPE, max_length=3)}, DataError, "no room for a prompt"),
        ({"recipe": replace(RECIPE, eval_every=2)}, GraftError, "needs evaluation data"),
        ({"method": "prompt", "options": {"tokens": "256"}}, GraftError, "no room"),
    ],
)
def test_bad_plans_are_refused_before_a_step(llama, data, tmp_path, fields, error, words):
    adapter = replace(AdapterPlan("lora", data, tmp_path / "out", recipe=RECIPE), **fields)
    with pytest.raises(error, match=words):
        train(llama, [adapter])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"batch_size": 0}, "batch_size must be a number greater than 0"),
        ({"epochs": -1}, "epochs"),
        ({"schedule": "wavy"}, "cosine, linear, constant"),
        ({"warmup": 1.0}, "warmup"),
        ({"patience": 2}, "needs eval_every"),
    ],
)
def test_bad_recipes_are_refused(values, words):
    with pytest.raises(GraftError, match=words):
        TrainConfig(**values)


def test_bad_data_is_refused(llama, data, tmp_path):
    unlabelled = write_rows(tmp_path / "u.jsonl", [{"prompt": "a", "completion": "b"}])
    recipe = replace(RECIPE, metric="accuracy")
    with pytest.raises(DataError, match='needs "labels"'):
        train(llama, [plan(data, tmp_path / "out", eval_data=unlabelled, recipe=recipe)])
    llama.tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS"):
        train(llama, [plan(data, tmp_path / "out")])


def fill_the_disk(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def test_a_full_disk_leaves_no_broken_artifact(llama, data, tmp_path, monkeypatch):
    fill_the_disk(monkeypatch)
    (outcome,) = train(llama, [plan(data, tmp_path / "out")])
    assert outcome.folder is None and "No space left" in outcome.stopped
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_artifact_that_was_there(llama, data, tmp_path, monkeypatch):
    small = replace(plan(data, tmp_path / "out"), options={"r": "2"})
    train(llama, [small])
    before = load_artifact(tmp_path / "out", llama.spec).digest
    fill_the_disk(monkeypatch)
    (outcome,) = train(llama, [replace(small, options={"r": "4"})])
    assert outcome.folder is None and load_artifact(tmp_path / "out", llama.spec).digest == before


def test_the_evaluation_is_kept_out_of_the_training(llama, tmp_path):
    both = write_rows(tmp_path / "both.jsonl", ROWS)
    some = write_rows(tmp_path / "some.jsonl", ROWS[:5])
    found = read_data(llama, plan(both, tmp_path / "out", eval_data=some))
    seen = {row["prompt"] for row in ROWS[:5]}
    assert found.train and not seen & {example.prompt for example in found.train}


def test_rows_per_pass_does_not_change_the_artifact(llama, data, tmp_path):
    for name, rows in (("whole", 4096), ("cut", 6)):
        train(llama, [plan(data, tmp_path / name)], RunConfig(rows_per_pass=rows))
    whole, cut = (load_artifact(tmp_path / name, llama.spec).tensors for name in ("whole", "cut"))
    for key, tensor in whole.items():
        torch.testing.assert_close(tensor, cut[key], rtol=1e-3, atol=1e-5)
