"""Training on a real GPU, against the same training on the CPU. Skips where torch sees no CUDA GPU."""

import copy
import json

import pytest
import torch

from graft.hub.base.model import Base
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.sampling.params import Sampling
from graft.trainer import train
from tests.conftest import tiny_base
from tests.trainer.cases import ALL, plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False: no CUDA GPU here"),
]


def on_gpu(base, dtype=None):
    return Base(copy.deepcopy(base.model).to("cuda", dtype), base.tokenizer, base.spec.id)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_losses_are_those_of_a_cpu_and_what_was_trained_is_served(family, data, held_out, tmp_path):
    base = tiny_base(family)
    trained = {}
    for where, on in (("cpu", base), ("gpu", on_gpu(base))):
        plans = [plan(data, tmp_path / where / method, method, eval_data=held_out) for method in ALL]
        trained[where] = train(on, plans)
    for ours, theirs in zip(trained["gpu"], trained["cpu"], strict=True):
        losses = [
            [step["loss"] for step in json.loads((outcome.folder / "graft.json").read_text())["history"]]
            for outcome in (ours, theirs)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), ours.folder
    folders = {outcome.folder.name: outcome.folder for outcome in trained["gpu"]}
    asked = [
        Request((5, 6, 7, 8), name, max_tokens=6, ignore_eos=True, sampling=Sampling(temperature=0)) for name in folders
    ]
    with Engine(on_gpu(base), folders, options=Options(runner="fast")) as engine:
        served = engine.generate(asked)
    with Engine(base, folders, options=Options(runner="eager")) as engine:
        expected = engine.generate(asked)
    assert [result.ids for result in served] == [result.ids for result in expected]


def test_a_bf16_base_is_trained_on_a_gpu(data, held_out, tmp_path):
    base = on_gpu(tiny_base("llama"), torch.bfloat16)
    for outcome in train(base, [plan(data, tmp_path / method, method, eval_data=held_out) for method in ALL]):
        assert outcome.score.n == 3
