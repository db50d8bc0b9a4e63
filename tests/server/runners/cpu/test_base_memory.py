"""The base's weights lie in memory once, and whoever needs them in their own shape still gets them."""

import os

import psutil
import pytest
import torch

from graft.hub.adapters.serving_forms import Vector, detours
from graft.hub.base.hook_points import Tap
from graft.hub.base.model import load_base
from graft.hub.base.stored_weights import stored_weights
from graft.hub.errors import BaseModelError, GraftError
from graft.server.cache.step import Run, make_batch
from graft.server.cache.tensors import KVCache
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options, sizes
from graft.server.engine.request import Request
from graft.server.runners.cpu.base_memory import extra_bytes, linears
from graft.server.runners.cpu.build import load
from graft.server.runners.cpu.runner import fast_runner
from graft.server.runners.eager.runner import EagerRunner
from graft.server.runners.step_memory import step_bytes
from graft.server.sampling.params import Sampling
from tests.conftest import tiny_model, tiny_tokenizer
from tests.server.conftest import KINDS

TEXT = list(range(2, 34))


@pytest.fixture(params=["llama", "qwen2", "phi3"])
def folder(request, tmp_path):
    """A base on disk, in bfloat16. llama's head is tied to its embedding; qwen2's linears have biases; phi3's are fused."""
    if load() is None:
        pytest.skip("there are no CPU kernels on this machine")
    tiny_model(request.param).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture(params=["float32", "bfloat16"])
def loaded(request, folder):
    """Twice: one to be served, one that stays as it is."""
    return load_base(folder, dtype=request.param), load_base(folder, dtype=request.param)


def cache_for(base):
    return KVCache(base.spec, 16, base.dtype, base.device)


def logits(runner, digest=None):
    return runner.run(make_batch([(digest, Run(0, TEXT, 0, 0, [1, 2], len(TEXT)))])[0])


def released(base):
    return {name for name in linears(base) if base.model.get_submodule(name).weight.is_meta}


def test_what_is_packed_is_given_back_but_for_the_embedding(loaded):
    base, untouched = loaded
    runner = fast_runner(base, cache_for(base))
    kept = set(linears(base)) - released(base)
    assert kept == ({"lm_head"} if base.model.config.tie_word_embeddings else set())
    assert (base.dtype, base.device.type) == (untouched.dtype, "cpu")
    for name in linears(base):
        assert torch.equal(base.weight(name), untouched.weight(name))
    expected = logits(EagerRunner(untouched, cache_for(untouched)))
    tolerance = 1e-4 if base.dtype == torch.float32 else 0.1
    assert (logits(runner).float() - expected.float()).norm() <= tolerance * expected.float().norm()
    assert released(base)


def test_the_eager_path_reads_them_again(loaded):
    """An adapter at a tap that the kernels don't pass: its rows are the eager runner's, the others' stay on the fast path."""
    base, untouched = loaded
    forms = [Vector(Tap(base.spec.module(0, base.spec.parts.attn_norm), "in"), torch.full((32,), 1.5), None)]
    fast, eager = fast_runner(base, cache_for(base)), EagerRunner(untouched, cache_for(untouched))
    alone = logits(fast)
    for runner in (fast, eager):
        runner.add("odd", runner.prepare(forms))
    assert not released(base)
    assert torch.equal(logits(fast, "odd"), logits(eager, "odd"))
    assert torch.equal(logits(fast), alone)


@pytest.mark.parametrize("kind", ["lora", "dora", "bitfit", "prompt"])
def test_adapters_fold_over_released_weights_as_over_loaded_ones(loaded, make_forms, kind):
    base, untouched = loaded
    fast_runner(base, cache_for(base))
    ours, theirs = detours(make_forms(kind, base)), detours(make_forms(kind, untouched))
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name, value in vars(other).items():
            assert (
                torch.equal(value, getattr(one, name))
                if isinstance(value, torch.Tensor)
                else value == getattr(one, name)
            )
    assert released(base)


def test_every_kind_is_served_over_a_base_without_weights(loaded, make_folder):
    """And proven: the proof reads the files itself."""
    base, untouched = loaded
    folders = {kind: make_folder(kind, untouched, seed) for seed, kind in enumerate(KINDS)}
    asked = [
        Request(tuple(TEXT[:9]), name, max_tokens=6, ignore_eos=True, sampling=Sampling(0)) for name in (None, *KINDS)
    ]
    with Engine(base, folders, options=Options(runner="fast")) as engine:
        answers = [result.ids for result in engine.generate(asked)]
        assert released(base)
    if base.dtype == torch.float32:
        with Engine(untouched, folders, options=Options(runner="eager")) as engine:
            assert answers == [result.ids for result in engine.generate(asked)]


def test_weights_that_somebody_changed_stay(folder):
    base = load_base(folder, dtype="float32")
    changed = base.spec.module(1, base.spec.parts.mlp_out)
    base.model.get_submodule(changed).weight.data[0, 0] += 1
    fast_runner(base, cache_for(base))
    assert changed not in released(base) and released(base)


def test_a_base_that_was_made_in_memory_stays(llama):
    fast_runner(llama, cache_for(llama))
    assert not released(llama)


def test_files_that_have_changed_since_are_not_read(folder):
    base = load_base(folder, dtype="float32")
    fast_runner(base, cache_for(base))
    name = base.spec.module(0, base.spec.parts.mlp_out)
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    with pytest.raises(BaseModelError, match="has changed since the base was loaded"):
        base.weight(name)
    weights.unlink()
    with pytest.raises(BaseModelError, match="can't be read any more"):
        base.restore()
    with pytest.raises(BaseModelError, match="no longer there"):
        stored_weights(base)


# What is counted, and what is refused


def test_what_packing_takes_is_what_it_took(folder):
    """Weights in their file's dtype are mapped and cost nothing to keep; others are exchanged for the packed ones."""
    mapped, converted = (load_base(folder, dtype=dtype) for dtype in ("bfloat16", "float32"))
    sizes_of = {base.dtype: sum(base.weight(name).nbytes for name in linears(base)) for base in (mapped, converted)}
    padding = sum(64 * mapped.weight(name).shape[1] for name in linears(mapped))
    assert extra_bytes(mapped) == sizes_of[torch.bfloat16] + padding * 2
    tied = converted.weight("lm_head").nbytes if converted.model.config.tie_word_embeddings else 0
    assert extra_bytes(converted) == padding * 4 + tied


def with_free(monkeypatch, size):
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=size))


@pytest.mark.parametrize("flag", ["cache_bytes", "host_bytes", "device_bytes"])
def test_a_budget_that_can_not_fit_is_refused_with_figures(llama, flag):
    with pytest.raises(
        GraftError, match=r"^--[a-z-]+ 900\.0 GiB .* [\d.]+ GiB of memory that are free .* Give less\.$"
    ):
        Engine(llama, options=Options(**{flag: 900 << 30}))


def test_budgets_fit_together_or_not_at_all(llama, monkeypatch):
    with_free(monkeypatch, 1 << 30)
    third = 350 << 20
    sizes(Options(cache_bytes=third, host_bytes=third, runner="eager"), llama)
    with pytest.raises(GraftError, match=r"--kv-bytes .* and --adapter-device-bytes .* and --adapter-host-bytes"):
        sizes(Options(cache_bytes=third, host_bytes=third, device_bytes=third, runner="eager"), llama)


def test_packed_weights_and_a_step_are_counted_before_the_cache(llama, monkeypatch):
    packed, rows = extra_bytes(llama), 512
    step = step_bytes(llama.spec, 4, rows)
    with_free(monkeypatch, packed + step - 1)
    with pytest.raises(GraftError, match=r"the base's packed weights .* and a step of 512 rows .* --runner eager"):
        sizes(Options(step_rows=rows), llama)
    with_free(monkeypatch, packed + step + (1 << 20))
    assert sizes(Options(step_rows=rows), llama).host_bytes == (1 << 20) // 4
    assert sizes(Options(step_rows=rows, runner="eager"), llama).host_bytes == (packed + (1 << 20)) // 4
    with pytest.raises(GraftError, match=r"--kv-bytes .* and the base's packed weights .* and a step"):
        sizes(Options(step_rows=rows, cache_bytes=2 << 20), llama)


def test_what_a_step_takes_is_what_it_took(loaded):
    base, _ = loaded
    runner, rows = fast_runner(base, cache_for(base)), len(TEXT)
    scored = logits(runner)  # of all its rows
    took = runner._model.step_bytes + scored.nbytes
    assert took <= step_bytes(base.spec, base.dtype.itemsize, rows) <= 1.1 * took
