"""Pooled hidden states from the engine, against one pass over each text alone."""

import numpy as np
import pytest
import torch

from graft.server.cache.tensors import block_bytes
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Pooling, Request
from graft.server.errors import NotFiniteError, RequestError, TooLongError
from graft.server.sampling.params import GREEDY
from tests.server.engine.test_engine import KINDS, assert_greedy, assert_idle, prompts
from tests.server.runners.test_hidden import hidden_states


@pytest.fixture
def shelf(make_folder):
    def make(base, kinds=KINDS):
        return {kind: make_folder(kind, base, seed) for seed, kind in enumerate(kinds)}

    return make


def pooled(base, forms, prompt, pooling):
    """[H], of all rows at once."""
    states = hidden_states(base, forms, list(prompt)).double()
    return (states.mean(0) if pooling is Pooling.MEAN else states[-1]).numpy()


def asking(prompt, name=None, pooling=Pooling.MEAN):
    return Request(prompt, name, max_tokens=0, pooling=pooling)


def assert_pooled(base, make_forms, request, result):
    forms = make_forms(request.model, base, KINDS.index(request.model)) if request.model else ()
    want = pooled(base, forms, request.prompt, request.pooling)
    np.testing.assert_allclose(result.embedding, want, atol=1e-4, rtol=1e-4)
    assert result.ids == [] and result.prompt == ()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"], indirect=True)
def test_all_kinds_beside_generating_rows_equal_each_alone(base, make_forms, shelf):
    """Chunks of at most 16 rows: virtual tokens and other rows have no part in a mean."""
    names = [None, *KINDS] * 3
    texts = prompts(len(names))
    asked = [
        asking(prompt, name, Pooling.MEAN if i % 2 else Pooling.LAST)
        if i < 2 * len(names) // 3
        else Request(prompt, name, max_tokens=8, ignore_eos=True, sampling=GREEDY)
        for i, (name, prompt) in enumerate(zip(names, texts, strict=True))
    ]
    with Engine(base, shelf(base), options=Options(step_rows=16, max_running=12)) as engine:
        results = engine.generate(asked)
        assert_idle(engine)
    for request, result in zip(asked, results, strict=True):
        if request.pooling is None:
            assert_greedy(
                base, make_forms(request.model, base, KINDS.index(request.model)) if request.model else (),
                request.prompt, result,
            )  # fmt: skip
        else:
            assert_pooled(base, make_forms, request, result)


def test_what_was_found_in_the_cache_is_part_of_the_last_states_and_a_mean_computes_it(llama, make_forms, shelf):
    prompt = prompts(1, shortest=40)[0]
    with Engine(llama, shelf(llama, ["lora"])) as engine:
        for name in (None, "lora"):
            asked = [asking(prompt, name, pooling) for pooling in (Pooling.LAST, Pooling.LAST, Pooling.MEAN)]
            results = [engine.generate([one])[0] for one in asked]
            assert [result.cached_tokens for result in results] == [0, 32, 0]
            for request, result in zip(asked, results, strict=True):
                assert_pooled(llama, make_forms, request, result)
        assert_idle(engine)


def test_a_mean_survives_preemption(llama, make_forms, shelf):
    """Who gave way has been told of its first rows, which it computes again: they count once."""
    options = Options(cache_bytes=14 * block_bytes(llama.spec, llama.dtype), step_rows=4, max_running=4)
    writers = [
        Request(prompt, max_tokens=60, ignore_eos=True, sampling=GREEDY) for prompt in prompts(3, seed=4, longest=8)
    ]  # each takes a row of a step, and a block for sixteen of them, beside a reader's one row
    readers = [asking(prompt, name) for prompt in prompts(2, shortest=80, longest=90) for name in (None, "lora")]
    with Engine(llama, shelf(llama, ["lora"]), options=options) as engine:
        results = engine.generate([*writers, *readers])[len(writers) :]
        assert engine.scheduler.preemptions > 0
        assert_idle(engine)
    for request, result in zip(readers, results, strict=True):
        assert_pooled(llama, make_forms, request, result)


def test_what_can_t_be_pooled_is_refused(llama):
    with Engine(llama) as engine:
        for wrong in (
            Request((5, 6), max_tokens=1, pooling=Pooling.MEAN),
            Request((5, 6), max_tokens=0, pooling=Pooling.MEAN, score_from=0),
            Request((5, 6), max_tokens=0, pooling=Pooling.MEAN, score_next=(3,)),
        ):
            with pytest.raises(RequestError, match="hidden states"):
                engine.generate([wrong])
        with pytest.raises(TooLongError):
            engine.generate([asking((5,) * 300)])


def test_an_adapter_that_overflows_costs_its_own_requests(llama, make_forms, make_folder):
    from safetensors.torch import load_file, save_file

    folder = make_folder("lora", llama)
    weights = folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, 1e25) for name, value in load_file(weights).items()}, weights)
    with Engine(llama, {"broken": folder, "lora": make_folder("lora", llama, 1)}) as engine:
        streams = [engine.submit(asking((5, 6, 7), name)) for name in ("broken", None)]
        with pytest.raises(NotFiniteError):
            streams[0].result()
        assert np.isfinite(streams[1].result().embedding).all()
        assert_idle(engine)
