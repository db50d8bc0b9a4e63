"""The engine on a real GPU, against the same base on the CPU. Skips where torch sees no CUDA GPU."""

import copy

import pytest
import torch

from graft.hub.base.model import Base
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Pooling, Request
from graft.server.sampling.params import Draw, Sampling
from tests.server.engine.test_embeddings import assert_pooled
from tests.server.engine.test_engine import GREEDY, KINDS, assert_greedy, assert_idle, prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False: no CUDA GPU here"),
]


@pytest.fixture
def on_gpu():
    return lambda base, dtype=None: Base(copy.deepcopy(base.model).to("cuda", dtype), base.tokenizer, base.spec.id)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"], indirect=True)
@pytest.mark.parametrize("runner", ["eager", "fast"])
def test_all_kinds_in_one_batch_say_what_each_says_alone_on_a_cpu(runner, base, on_gpu, make_forms, make_folder):
    names = [None, *KINDS] * 2
    asked = [
        Request(prompt, model=name, max_tokens=8, ignore_eos=True, sampling=GREEDY)
        for name, prompt in zip(names, prompts(len(names)), strict=True)
    ]
    shelf = {kind: make_folder(kind, base, seed) for seed, kind in enumerate(KINDS)}
    options = Options(step_rows=64, max_running=16, runner=runner)
    with Engine(on_gpu(base), shelf, options=options) as engine:
        results = engine.generate(asked)
        assert_idle(engine)
    for request, result in zip(asked, results, strict=True):
        forms = make_forms(request.model, base, KINDS.index(request.model)) if request.model else ()
        assert_greedy(base, forms, request.prompt, result)


@pytest.mark.parametrize("runner", ["eager", "fast"])
def test_pooled_hidden_states_beside_decoding_are_those_of_a_cpu(runner, llama, on_gpu, make_forms, make_folder):
    names = [None, *KINDS]
    texts = prompts(len(names))
    asked = [
        Request(prompt, name, max_tokens=0, pooling=Pooling.MEAN) for name, prompt in zip(names, texts, strict=True)
    ]
    asked += [Request(prompt, max_tokens=20, ignore_eos=True, sampling=GREEDY) for prompt in texts]
    shelf = {kind: make_folder(kind, llama, seed) for seed, kind in enumerate(KINDS)}
    with Engine(on_gpu(llama), shelf, options=Options(step_rows=32, max_running=16, runner=runner)) as engine:
        results = engine.generate(asked)
        assert_idle(engine)
    for request, result in zip(asked[: len(names)], results, strict=False):
        assert_pooled(llama, make_forms, request, result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_serves_with_its_own_kernels(dtype, llama, on_gpu):
    """The check at the start has passed: "auto" would hide a failure, "fast" raises it."""
    from graft.server.runners.cuda.runner import GroupedRunner

    with Engine(on_gpu(llama, dtype), {}, options=Options(runner="fast")) as engine:
        assert isinstance(engine.runner, GroupedRunner)


def test_decoding_on_a_gpu_replays_graphs_and_says_what_the_eager_engine_does(llama, on_gpu, make_folder):
    """Adapters load while others decode: their copies, their slots and freed memory disturb nobody."""
    shelf = {f"{kind}{seed}": make_folder(kind, llama, seed) for seed in range(4) for kind in ("lora", "dora", "ia3")}
    asked = [
        Request(prompt, model=name, max_tokens=24, ignore_eos=True, sampling=GREEDY)
        for name, prompt in zip([None, *shelf], prompts(1 + len(shelf)), strict=True)
    ]
    ids = {}
    for runner in ("eager", "fast"):
        # room for four adapters at a time: the others wait, evict and load beside those that decode
        options = Options(max_running=8, runner=runner, device_bytes=4 * 40_000)
        with Engine(on_gpu(llama), shelf, options=options) as engine:
            ids[runner] = [result.ids for result in engine.generate(asked)]
            if runner == "fast":
                assert engine.runner.static
            assert_idle(engine)
    assert ids["fast"] == ids["eager"]


def test_a_step_can_be_recorded_when_no_recorded_one_is_left(llama, on_gpu):
    """The pool that recordings share lives on when the last of them is dropped, as the trial's are at the start."""
    from graft.server.runners.cuda.graphs import Graphs

    graphs, x = Graphs(torch.device("cuda"), 1e-3), torch.ones(4, 4, device="cuda")
    for factor in (2.0, 3.0):
        replay = graphs.record(lambda factor=factor: x * factor)
        assert torch.equal(replay(), x * factor)
        del replay


def test_recorded_draws_are_those_of_the_sampler(llama):
    """Bit for bit, at sizes where torch sorts and cumulates in other ways: few rows and many, a small vocabulary and a large one."""
    from graft.server.runners.cuda.draw_step import Drawer
    from graft.server.runners.cuda.graphs import Graphs
    from graft.server.runners.cuda.static_sizes import padded
    from graft.server.sampling.torch_sampler import TorchSampler, plain_draws

    device = torch.device("cuda")
    drawer = Drawer(Graphs(device, 1e-3).record)
    for rows, vocabulary in ((1, 300), (3, 131_072), (24, 300), (24, 131_072), (130, 131_072)):
        for turn, sampling in enumerate((GREEDY, Sampling(temperature=0.7), Sampling(top_p=0.9), Sampling(top_k=5))):
            logits = torch.randn(padded(rows), vocabulary, device=device, dtype=torch.bfloat16) * 3
            for position in range(2):  # recorded, then replayed with other numbers
                draws = [(i, Draw(sampling, seed=i, position=position + turn)) for i in range(rows)]
                outputs = drawer.run(logits, plain_draws(draws))
                assert outputs is not None
                sampler = TorchSampler(draws, [], device)
                sampler.begin(logits)()
                assert torch.equal(outputs.drawn[0], sampler.drawn)
        drawer = Drawer(Graphs(device, 1e-3).record)


def test_sampled_requests_are_drawn_in_recorded_steps(llama, on_gpu, monkeypatch):
    """Two engines: one draws behind its graphs launch by launch."""
    from graft.server.runners.cuda import draw_step
    from graft.server.runners.cuda import runner as runner_module

    samplings = [Sampling(seed=i, top_p=(1.0, 0.9)[i % 2], temperature=0.8) for i in range(8)]
    asked = [
        Request(prompt, max_tokens=16, ignore_eos=True, sampling=sampling)
        for prompt, sampling in zip(prompts(8), samplings, strict=True)
    ]
    drawn, plain = [], draw_step.Drawer.run
    monkeypatch.setattr(draw_step.Drawer, "run", lambda *args: drawn.append(plain(*args)) or drawn[-1])
    ids = []
    for drawer in (runner_module._drawer, lambda base, record: None):
        monkeypatch.setattr(runner_module, "_drawer", drawer)
        with Engine(on_gpu(llama), {}, options=Options(max_running=8, runner="fast")) as engine:
            ids.append([result.ids for result in engine.generate(asked)])
            assert engine.runner.static
    assert drawn and None not in drawn
    assert ids[0] == ids[1]


def test_a_spoilt_recording_spoils_no_other():
    """A function that waits for the device can't be recorded; what is recorded before and after it works, and memory comes back."""
    from graft.server.runners.cuda.graphs import GraphError, Graphs

    graphs, x = Graphs(torch.device("cuda"), 1e-3), torch.ones(4, 4, device="cuda")
    before, present = graphs.record(lambda: x * 2), torch.cuda.current_stream()
    for _ in range(3):
        with pytest.raises(GraphError):
            graphs.record(lambda: x * float(x.sum()))
        assert torch.cuda.current_stream() == present
        torch.cuda.empty_cache()  # asserts that nothing is being recorded
        assert torch.equal(graphs.record(lambda: x * 3)(), x * 3)
    assert torch.equal(before(), x * 2)
