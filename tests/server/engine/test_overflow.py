"""An adapter that overflows, under the C++ kernels: its own requests get a 422, everybody else's output has every bit it had."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.errors import NotFiniteError
from graft.server.http.app import create_app
from graft.server.runners.cpu.build import load
from graft.server.sampling.params import Sampling
from tests.conftest import tiny_base

OPTIONS = Options(runner="fast", step_rows=64, max_running=16)
WATCHED = Sampling(temperature=0, logprobs=3)


@pytest.fixture(params=[1, 2, 3], ids="threads-{}".format, autouse=True)
def threads(request):
    if load() is None:
        pytest.skip("there are no CPU kernels on this machine")
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=["float32", "bfloat16"])
def base(request):
    made = tiny_base("llama")
    made.model.to(getattr(torch, request.param))
    return made


@pytest.fixture
def folders(base, make_folder):
    """A good adapter, and one of the same shapes whose values are finite and whose products are not."""
    good, overflows = make_folder("lora", base, 1, name="good"), make_folder("lora", base, 2, name="overflows")
    weights = overflows / "adapter_model.safetensors"
    save_file({name: value * 1e25 for name, value in load_file(weights).items()}, weights)
    return {"good": good, "overflows": overflows}


def test_neighbours_have_every_bit_they_have_without_it(base, folders):
    neighbours = [
        Request(tuple(range(2 + i, 8 + 5 * i)), name, max_tokens=12, ignore_eos=True, sampling=WATCHED)
        for i, name in enumerate([None, "good", None, "good"])
    ]
    with Engine(base, folders, options=OPTIONS) as engine:
        alone = engine.generate(neighbours)
    with Engine(base, folders, options=OPTIONS) as engine:
        streams = [engine.submit(request) for request in neighbours]
        broken = [engine.submit(Request((5, 6, 7 + i), "overflows", max_tokens=4)) for i in range(3)]
        for stream in broken:
            with pytest.raises(NotFiniteError, match="not finite"):
                stream.result()
        beside = [stream.result() for stream in streams]
        again = engine.generate(neighbours)  # in blocks that the broken ones have written to
    for want, *got in zip(alone, beside, again, strict=True):
        for result in got:
            assert (result.ids, result.tokens) == (want.ids, want.tokens)


def test_clients_are_told_with_a_422(base, folders):
    with Engine(base, folders, options=OPTIONS) as engine:
        client = create_app(EngineClient(engine), max_at_once=4).test_client()
        asked = {"model": "overflows", "prompt": "The quick", "max_tokens": 4}
        for wanted in (asked, {**asked, "max_tokens": 0, "echo": True, "logprobs": 1}):
            answer = client.post("/v1/completions", json=wanted)
            assert (answer.status_code, answer.json["error"]["code"]) == (422, "not_finite")
        assert client.post("/v1/completions", json={**asked, "model": "good"}).status_code == 200
