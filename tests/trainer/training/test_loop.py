"""The loop against plain torch, against itself alone, and with one adapter gone wrong."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.methods import METHODS
from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.adapters.serving_forms import CacheRows, InputRows
from graft.trainer.learners.learner import rate_factor
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.plan.plan import AdapterPlan
from graft.trainer.training.base_weights import make_baseline
from graft.trainer.training.loop import train_all, train_step
from tests.conftest import tiny_base
from tests.trainer.cases import ALL, RECIPE, trainee


def nobody_evaluates(_):
    return None


def run(base, trainees, **settings):
    train_all(base, trainees, RunConfig(**settings), [], nobody_evaluates)
    return trainees


def test_every_method_is_tried_here():
    assert set(ALL) == set(METHODS)


def reference_loss(base, adapter, batch):
    """Mean completion loss, one sequence after another, logits for every row."""
    forms = adapter.forms(base)
    prompt = next((form.rows for form in forms if isinstance(form, InputRows)), None)
    prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
    losses = []
    for sequence in batch:
        rows = base.embed(torch.tensor(sequence.ids))
        if prompt is not None:
            rows = torch.cat([prompt, rows])
        start = prefix.text_start if prefix else 0
        positions = torch.arange(start, start + len(rows))
        step = Step(Stack([forms], torch.float32, "cpu"), RowOwners(0, (len(rows),)), lm_head="lm_head")
        attention = PackedAttention([len(rows)], [prefix], torch.device("cpu"))
        with base.attachment.activate(step):
            logits = base.forward(rows, positions, attention)
        text = logits[len(rows) - len(sequence.ids) :]
        targets = torch.tensor(sequence.ids[sequence.answer_start :])
        losses.append(F.cross_entropy(text[sequence.answer_start - 1 : -1], targets, reduction="sum"))
    return torch.stack(losses).sum() / sum(sequence.learned for sequence in batch)


@pytest.mark.parametrize("method", ALL)
def test_loss_and_gradient_equal_plain_torch(llama, data, method):
    ours, plain = trainee(llama, data, method), trainee(llama, data, method)
    batch = plain.next_batch()
    loss = reference_loss(llama, plain, batch)
    loss.backward()
    seen = {}
    ours.update = lambda value, tokens: seen.update(loss=value, gradient=ours.flat.grad.clone())
    train_step(llama, [ours], RunConfig())
    assert seen["loss"] == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(seen["gradient"], plain.flat.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_every_family_equals_plain_torch(base, data, method):
    ours, plain = trainee(base, data, method), trainee(base, data, method)
    batch = plain.next_batch()
    reference_loss(base, plain, batch).backward()
    seen = {}
    ours.update = lambda value, tokens: seen.update(gradient=ours.flat.grad.clone())
    train_step(base, [ours], RunConfig())
    torch.testing.assert_close(seen["gradient"], plain.flat.grad, rtol=1e-3, atol=1e-6)


def test_cutting_a_step_into_passes_changes_nothing(llama, data):
    (whole,), (cut,) = run(llama, [trainee(llama, data)]), run(llama, [trainee(llama, data)], rows_per_pass=5)
    # As vectors: where a gradient is all but zero, Adam divides its rounding by itself, so single numbers may differ more.
    assert (whole.flat - cut.flat).norm() <= 1e-5 * whole.flat.norm()
    assert torch.isclose(whole.flat, cut.flat, rtol=1e-4, atol=1e-5).float().mean() >= 0.999
    assert whole.progress.history[0]["loss"] == pytest.approx(cut.progress.history[0]["loss"], rel=1e-5)


@pytest.mark.parametrize("method", ALL)
def test_recomputing_layers_changes_nothing(llama, data, method):
    dropout = {"dropout": "0.3"} if method == "lora" else {}
    (kept,) = run(llama, [trainee(llama, data, method, **dropout)])
    (recomputed,) = run(llama, [trainee(llama, data, method, **dropout)], checkpoint_layers=True)
    torch.testing.assert_close(kept.flat, recomputed.flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@pytest.mark.parametrize("method", ["lora", "prefix", "prompt", "full"])
def test_the_base_own_dropout_stays_off_with_and_without_recomputing(family, method, data, tmp_path):
    """GPT-2 and OPT bring dropout of 0.1, which would be drawn anew if anything set the model to training."""
    found = []
    for recompute in (False, True):
        base = tiny_base(family)
        dropout = base.model.config.resid_pdrop if family == "gpt2" else base.model.config.dropout
        assert dropout == 0.1
        if method == "full":
            job = AdapterPlan("full", data, tmp_path, recipe=RECIPE)
            sequences = trainee(base, data).sequences
            learner = make_baseline(base, job, sequences)
        else:
            learner = trainee(base, data, method)
        run(base, [learner], checkpoint_layers=recompute)
        assert not any(module.training for module in base.model.modules())
        found.append(torch.cat([weight.detach().reshape(-1) for weight in learner.weights]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_together_equals_alone(llama, data):
    """Mixed kinds, ranks, rates, seeds and dropout in one pass; float32, tolerance 1e-4 relative to what moved."""

    def make():
        recipes = [replace(RECIPE, seed=i, steps=3 + i % 3, learning_rate=5e-3 * (1 + i)) for i in range(len(ALL))]
        adapters = [trainee(llama, data, method, recipe) for method, recipe in zip(ALL, recipes, strict=True)]
        return [*adapters, trainee(llama, data, "lora", replace(RECIPE, seed=9), r="3", dropout="0.4")]

    together = run(llama, make())
    for ours, start, alone in zip(together, make(), make(), strict=True):
        run(llama, [alone])
        moved = (alone.flat - start.flat).abs().max()
        assert moved > 0
        assert (ours.flat - alone.flat).abs().max() < 1e-3 * moved, ours.name
        assert ours.progress.step == alone.progress.step == alone.total_steps


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_one_that_diverges_is_stopped_alone(llama, data, poison):
    calm = [trainee(llama, data, method) for method in ("lora", "prefix")]
    wild = [trainee(llama, data, method) for method in ("lora", "series", "prefix", "bitfit", "prompt")]
    for adapter in wild:
        adapter.flat.data.fill_(poison)
    run(llama, [calm[0], *wild, calm[1]])
    for adapter in wild:
        if poison != 1e30:  # a norm may tame a number that is only large
            assert adapter.progress.diverged and "is not finite" in adapter.progress.stopped
    for ours, method in zip(calm, ("lora", "prefix"), strict=True):
        alone = run(llama, [trainee(llama, data, method)])[0]
        assert ours.progress.step == 4 and not ours.progress.stopped
        torch.testing.assert_close(ours.flat, alone.flat, rtol=1e-3, atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(llama, data):
    first, second, other = (run(llama, [trainee(llama, data, recipe=replace(RECIPE, seed=s))])[0] for s in (5, 5, 6))
    assert torch.equal(first.flat, second.flat) and not torch.equal(first.flat, other.flat)


def test_the_gradient_is_clipped_by_adapter(llama, data):
    adapter = trainee(llama, data, recipe=replace(RECIPE, max_grad_norm=1e-3, steps=1))
    adapter.flat.grad = torch.full_like(adapter.flat, 2.0)
    scaled = adapter.flat.grad / adapter.flat.grad.norm() * 1e-3
    adapter._optimizer.step = lambda: torch.testing.assert_close(adapter.flat.grad, scaled)
    adapter.update(1.0, 1)
    assert adapter.progress.history[0]["grad_norm"] == pytest.approx(2.0 * math.sqrt(adapter.flat.numel()), rel=1e-4)


def test_the_schedule_warms_up_and_falls():
    recipe = TrainConfig(warmup=0.2)
    factors = [rate_factor(recipe, step, 10) for step in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors == sorted(factors[:2]) + sorted(factors[2:], reverse=True)
    assert factors[-1] < 0.05
    assert rate_factor(replace(recipe, schedule="linear"), 6, 10) == pytest.approx(0.5)
    assert rate_factor(replace(recipe, schedule="constant"), 9, 10) == 1.0


def test_eos_is_learned(llama, data):
    adapter = trainee(llama, data, recipe=TrainConfig(steps=60, batch_size=6, learning_rate=2e-2))
    run(llama, [adapter])
    assert adapter.progress.history[-1]["loss"] < 0.5 * adapter.progress.history[0]["loss"]
    from graft.trainer.evaluation.generation import generate

    prompts = [list(sequence.ids[: sequence.answer_start]) for sequence in adapter.sequences[:3]]
    with torch.no_grad():
        answers = generate(llama, adapter.forms(llama), prompts, 20, llama.tokenizer.eos_token_id)
    assert all(len(answer) < 20 for answer in answers)
