"""The C++ kernels under one, two and three threads, in both dtypes."""

import subprocess

import pytest
import torch

from graft.server.cache.step import BLOCK_ROWS
from graft.server.runners.cpu import build
from graft.server.runners.cpu.build import load

DTYPES = {"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 2**-8)}  # and the tolerance
BLOCK = BLOCK_ROWS


@pytest.fixture(scope="module", params=[1, 2, 3], ids="threads-{}".format)
def kernels(request):
    found = load()
    if found is None:
        pytest.skip("no C++ compiler (c++ or $CXX) on the PATH, or its build failed, which a test tells")
    torch.set_num_threads(request.param)
    yield found
    torch.set_num_threads(1)


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def run_program(source, tmp_path):
    """A C++ program on the kernels' headers, built with their flags, which ends with 0 where all it looks at is right."""
    try:
        compiler = build._compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    made = tmp_path / source.stem
    command = [compiler, *build._flags(), "-I", str(build.SOURCES), str(source), "-o", str(made)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([made], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rand(dtype, *shape, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DTYPES[dtype][0])


def close(got, expected, dtype):
    error = (got.float() - expected.float()).abs().max() / expected.abs().max()
    assert error <= DTYPES[dtype][1], f"relative error {error:.2g}"


def attention_reference(query, keys, values, scale, window, softcap):
    """One row [heads, D] over its keys and values [S, kv_heads, D], the last of which is its own."""
    group = query.shape[0] // keys.shape[1]
    k, v = (x.float().repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("hd,shd->hs", query.float(), k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if window:
        scores[:, : max(0, len(keys) - window)] = float("-inf")
    return torch.einsum("hs,shd->hd", scores.softmax(dim=-1), v)
