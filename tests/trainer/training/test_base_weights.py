"""Full fine-tuning and last layers: the base's own weights learn, and a base folder comes out."""

import pytest
import torch
from safetensors import SafetensorError

from graft.hub.base.model import load_base
from graft.hub.errors import GraftError
from graft.trainer import TrainConfig
from graft.trainer.plan.plan import AdapterPlan
from graft.trainer.training.base_weights import train_baseline, trained_weights

RECIPE = TrainConfig(batch_size=3, steps=4, learning_rate=1e-3)


def weights(base):
    return {name: parameter.detach().clone() for name, parameter in base.model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_changes_everything_and_can_be_loaded(llama, data, held_out, tmp_path, dtype):
    llama.model.to(dtype)
    before = weights(llama)
    plan = AdapterPlan("full", data, tmp_path / "out", eval_data=held_out, recipe=RECIPE)
    outcome = train_baseline(llama, plan)
    assert outcome.score.n == 3 and outcome.parameters == llama.spec.parameters
    changed = [name for name, value in weights(llama).items() if not torch.equal(value, before[name])]
    assert len(changed) > 0.9 * len(before)
    again = load_base(tmp_path / "out", dtype=str(dtype).removeprefix("torch."), device="cpu")
    assert again.spec.fingerprint != llama.spec.fingerprint
    for name, value in weights(again).items():
        assert torch.equal(value, weights(llama)[name]), name


def test_last_layers_leaves_the_others_alone(base, data, tmp_path):
    before = weights(base)
    plan = AdapterPlan("last-layers", data, tmp_path / "out", options={"layers": "1"}, recipe=RECIPE)
    outcome = train_baseline(base, plan)
    chosen = {id(weight) for weight in trained_weights(base, 1)}
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name]) != (id(parameter) in chosen), name
    assert outcome.parameters < 0.5 * base.spec.parameters


def test_full_equals_plain_adamw(llama, data, tmp_path):
    """Against torch's AdamW on the model's own loss, one sequence after another."""
    import copy

    from graft.trainer.data.batches import Order
    from graft.trainer.data.sequences import sequences_of
    from graft.trainer.learners.learner import rate_factor
    from graft.trainer.training.run import read_data

    plan = AdapterPlan("full", data, tmp_path / "out", recipe=RECIPE)
    twin = copy.deepcopy(llama.model)
    twin.set_attn_implementation("eager")
    twin.requires_grad_(True)
    order = Order(sequences_of(read_data(llama, plan).train, llama.tokenizer, 256), 3, RECIPE.seed)
    optimizer = torch.optim.AdamW(twin.parameters(), weight_decay=0.0)
    for step in range(4):
        batch = order.next()
        learned = sum(sequence.learned for sequence in batch)
        for sequence in batch:
            labels = [-100] * sequence.answer_start + list(sequence.ids[sequence.answer_start :])
            loss = twin(torch.tensor([sequence.ids]), labels=torch.tensor([labels])).loss
            (loss * sequence.learned / learned).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * rate_factor(RECIPE, step, 4)
        optimizer.step()
        optimizer.zero_grad()
    train_baseline(llama, plan)
    for (name, ours), theirs in zip(llama.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    "method, options, words",
    [
        ("full", {"r": "8"}, "full has no option 'r'"),
        ("last-layers", {"layers": "0"}, "must lie in 1..2"),
        ("lora", {}, "no baseline"),
    ],
)
def test_bad_baselines_are_refused(llama, data, tmp_path, method, options, words):
    with pytest.raises(GraftError, match=words):
        train_baseline(llama, AdapterPlan(method, data, tmp_path / "out", options=options))


def test_a_full_disk_leaves_no_half_of_a_base(llama, data, tmp_path, monkeypatch):
    def full(*_, **__):
        (tmp_path / "out" / ".writing" / "config.json").write_text("{}")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(llama.model, "save_pretrained", full)
    outcome = train_baseline(llama, AdapterPlan("full", data, tmp_path / "out", recipe=RECIPE))
    assert outcome.folder is None and "No space left" in outcome.stopped and not (tmp_path / "out").exists()
