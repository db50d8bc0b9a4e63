"""What the kernels read and write begins at a line of 64 bytes, whoever has made it."""

import re
from pathlib import Path

import pytest
import torch

from graft.hub.base.model import Base
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.runners.cpu import build
from graft.server.runners.cpu.runner import FastRunner
from graft.server.sampling.params import Sampling
from tests.conftest import tiny_model, tiny_tokenizer
from tests.server.runners.cpu.conftest import run_program

PROGRAM = Path(__file__).parent / "memory_test.cpp"


def test_vectors_of_floats_begin_at_a_line(tmp_path):
    run_program(PROGRAM, tmp_path)


def test_no_numbers_lie_in_memory_of_another_kind():
    """`Floats`, `Room` and `Memory` (csrc/memory.h) are the only homes of what vectors are loaded from."""
    for path in sorted(build.SOURCES.iterdir()):
        other = re.findall(r"std::vector<(?:float|S|T)>|new (?:float|S|T)\[|malloc\(", path.read_text())
        assert not other, (path.name, other)


class Watched:
    """Kernels, or a model of them, that look at every tensor that they are given or give."""

    def __init__(self, watched, seen):
        self._watched, self._seen = watched, seen

    def __getattr__(self, name):
        member = getattr(self._watched, name)
        if not callable(member) or name in {"Shape", "Run", "Draw", "Score"}:
            return member

        def call(*given, **named):
            look(name, (given, named), self._seen)
            result = member(*given, **named)
            look(name, result, self._seen)
            return Watched(result, self._seen) if name.startswith("Model_") else result

        return call


def look(name, values, seen):
    if isinstance(values, torch.Tensor):
        seen.setdefault(name, []).append(values)
        assert not values.numel() or values.data_ptr() % 64 == 0, (name, values.shape)
    elif isinstance(values, dict):
        look(name, tuple(values.values()), seen)
    elif isinstance(values, (tuple, list)):
        for value in values:
            look(name, value, seen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_that_the_kernels_get_begins_at_a_line(make_folder, monkeypatch, dtype):
    """Rows, keys and values, logits: in steps of prompts and of single tokens, with adapters of all forms, drawn and scored."""
    kernels, seen = build.load(), {}
    if kernels is None:
        pytest.skip("no C++ compiler (c++ or $CXX) on the PATH, or its build failed, which a test tells")
    made = FastRunner.__init__

    def watching(self, base, cache, kernels, *more):
        made(self, base, cache, Watched(kernels, seen), *more)

    monkeypatch.setattr(FastRunner, "__init__", watching)
    base = Base(tiny_model("gemma2").to(getattr(torch, dtype)), tiny_tokenizer(), id="test/gemma2")
    folders = {kind: make_folder(kind, base) for kind in ("lora", "bitfit", "houlsby", "prompt", "prefix")}
    with Engine(base, folders, options=Options(runner="fast")) as engine:
        draw = Sampling(temperature=1.0, top_p=0.9, logprobs=3)
        asked = [Request(tuple(range(4, 9 + i)), name, 5, sampling=draw) for i, name in enumerate([None, *folders])]
        engine.generate([*asked, Request((5, 6, 7), None, 1, score_from=1)])
    assert len(seen["step"]) > 20 and len(seen[f"sample_{dtype}"]) > 5
    assert {"add_layer", "set_head", "set_rotations", "Vector", "LowRank"} <= seen.keys(), seen.keys()
