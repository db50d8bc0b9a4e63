"""The Triton kernels against the eager detours: on a GPU where there is one, else in Triton's interpreter.

Tolerances, relative to the largest value of the exact result: float32 differs by the order of additions (1e-5);
bfloat16 rounds what comes out of the shrink and the result, each within 2^-7 (the interpreter cuts off), while the
eager detours in float32 on the same values round nothing.
"""

import os
import random
import subprocess
import sys

import pytest
import torch

from graft.hub import detours
from graft.hub.detours import Channel, Rows
from graft.hub.forms import LowRank
from graft.hub.sites import Tap
from graft.server.cache import KVCache
from graft.server.runner import FastPathError, make_runner

pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
from graft.server.fast import grouped as runner_module
from graft.server.fast.grouped import GroupedChannel, GroupedRunner, grouped_runner
from graft.server.kernels import grouped as kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
TAP = Tap("", "in")


def form(draw, rank, width, out, activation="none", biased=False, dtype=torch.float32):
    """A random detour whose values are of `dtype`."""
    shapes = {"A": (rank, width), "B": (rank, out)} | ({"a": (rank,), "b": (out,)} if biased else {})
    spread = {"A": width**-0.5, "B": rank**-0.5, "a": 0.5, "b": 0.5}
    tensors = {
        name: (torch.randn(shape, generator=draw) * spread[name]).to(dtype).float() for name, shape in shapes.items()
    }
    return LowRank((TAP,), TAP, **tensors, activation=activation, scale=0.5)


def added(kind, owned, rows, x, whose, dtype, device=DEVICE):
    """What a channel of that kind makes of rows [T, out]."""
    channel = kind(owned, dtype, device)
    start, stop = channel.reach(whose)
    rows, x = rows.to(device, dtype), x.to(device, dtype)
    return channel.add(rows, x[start:stop], start, channel.plan(whose)).float().cpu()


def assert_as_eager(owned, whose, width, out, dtype, draw):
    rows, x = (torch.randn(whose.total, n, generator=draw).to(dtype) for n in (out, width))
    expected = added(Channel, owned, rows, x, whose, torch.float32, torch.device("cpu"))
    got = added(GroupedChannel, owned, rows, x, whose, dtype)
    assert (got - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()
    bare = whose.bare
    assert torch.equal(got[:bare], rows[:bare].float())


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_random_batches_equal_the_eager_detours(seed, dtype, draw):
    """Ranks 1 to 64, no row to many of an adapter, adapters without a detour here, activations and biases."""
    rng = random.Random(seed)
    adapters, (width, out) = rng.randint(1, 7), rng.choice([(32, 96), (130, 45), (700, 20), (64, 257)])
    owners = sorted(rng.sample(range(adapters), rng.randint(1, adapters)))
    owned = [
        (
            owner,
            form(
                draw, rng.randint(1, 64), width, out, rng.choice(list(detours.ACTIVATIONS)), rng.random() < 0.5, dtype
            ),
        )
        for owner in owners
    ]
    lengths = [rng.choice([0, 1, 1, 2, 5] if seed % 2 else [0, 1, 16, 17, 65, 90]) for _ in range(adapters)]
    lengths[owners[0]] += 1  # a step in which nobody has rows here does not come to a channel
    assert_as_eager(owned, Rows(rng.choice([0, 1, 20]), tuple(lengths)), width, out, dtype, draw)


def test_every_activation_is_known():
    assert set(kernels.ACTIVATIONS) == set(detours.ACTIVATIONS)


@pytest.mark.parametrize("activation", detours.ACTIVATIONS)
def test_each_activation(activation, draw):
    """On values from very negative to very positive."""
    owned = [(0, form(draw, 9, 32, 40, activation)), (1, form(draw, 3, 32, 40, activation, biased=True))]
    rows, x = torch.zeros(6, 40), torch.randn(6, 32, generator=draw) * torch.logspace(-3, 2, 6)[:, None]
    whose = Rows(0, (3, 3))
    expected = added(Channel, owned, rows, x, whose, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(
        added(GroupedChannel, owned, rows, x, whose, torch.float32), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("owners", [(1,), (1, 2)], ids=str)
def test_rows_of_others_keep_their_bits(owners, dtype, draw):
    """Bare rows and those of an adapter without a detour here: negative zero, infinity and all."""
    rows, x = (torch.randn(40, 50, generator=draw).to(dtype) for _ in range(2))
    rows[0], rows[1], rows[2] = -0.0, torch.inf, -torch.inf
    rows[9] = -0.0
    channel = GroupedChannel([(owner, form(draw, 5, 50, 50)) for owner in owners], dtype, DEVICE)
    whose = Rows(8, (20, 12, 0))
    start, stop = channel.reach(whose)
    got = channel.add(rows.to(DEVICE), x.to(DEVICE)[start:stop], start, channel.plan(whose)).cpu()
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(got[:28].view(bits), rows[:28].view(bits))
    assert not torch.equal(got[28:], rows[28:])


def test_a_neighbours_infinities_stay_with_it(draw):
    owned = [(i, form(draw, 4 + 20 * i, 32, 32)) for i in range(3)]
    rows, x = (torch.randn(9, 32, generator=draw) for _ in range(2))
    whose = Rows(1, (2, 3, 3))
    clean = added(GroupedChannel, owned, rows, x, whose, torch.float32)
    x[3:6] = torch.inf
    spoiled = added(GroupedChannel, owned, rows, x, whose, torch.float32)
    others = [0, 1, 2, 6, 7, 8]
    assert not spoiled[3:6].isfinite().any()
    assert torch.equal(spoiled[others], clean[others])


def test_a_rows_result_does_not_depend_on_its_neighbours(draw):
    """Decoding rows: the same bits alone and in company."""
    owned = [(i, form(draw, rank, 600, 70, "silu", biased=True)) for i, rank in enumerate((8, 64, 33))]
    rows, x = torch.randn(9, 70, generator=draw), torch.randn(9, 600, generator=draw)
    mixed = added(GroupedChannel, owned, rows, x, Rows(1, (2, 3, 3)), torch.float32)
    alone = added(GroupedChannel, [(0, owned[1][1])], rows[3:6], x[3:6], Rows(0, (3,)), torch.float32)
    assert torch.equal(mixed[3:6], alone)


def test_strided_rows_are_read_where_they_lie(draw):
    """A part of a fused projection's output; and columns that are not one after another."""
    wide_rows, wide_x = (torch.randn(20, 200, generator=draw).to(DEVICE) for _ in range(2))
    channel = GroupedChannel([(0, form(draw, 12, 60, 70))], torch.float32, DEVICE)
    work = channel.plan(Rows(3, (17,)))
    for rows, x in (
        (wide_rows[:, 40:110], wide_x[3:, 90:150]),
        (wide_rows[:, :140:2], wide_x[3:, :120:2]),
    ):
        before = rows.clone()
        got = channel.add(rows, x, 3, work)
        assert torch.equal(got, channel.add(rows.contiguous(), x.contiguous(), 3, work))
        assert torch.equal(rows, before)


def test_small_ranks_among_large_ones_waste_little(draw):
    """24 adapters of rank 64 and 8 of rank 8: no rank is padded in memory, and under 10 % of those computed."""
    ranks = [64] * 24 + [8] * 8
    channel = GroupedChannel([(i, form(draw, r, 32, 32)) for i, r in enumerate(ranks)], torch.float32, DEVICE)
    assert channel.A.shape[0] == channel.B.shape[0] == sum(ranks)
    work = channel.plan(Rows(0, (1,) * len(ranks)))
    assert len(work.items) * kernels.COLUMNS <= 1.1 * sum(ranks)
    assert int(work.items[:, 3].sum()) == sum(ranks)


@pytest.mark.parametrize(
    "error", [RuntimeError("no driver"), subprocess.CalledProcessError(1, "gcc, no driver")], ids=repr
)
def test_a_gpu_whose_kernels_fail_is_served_without_them(error, llama, monkeypatch):
    """The check at the engine's start: wrong results and errors are reasons, not crashes."""
    llama.model.to(DEVICE)
    cache = KVCache(llama.spec, 4, llama.dtype, llama.device)
    assert isinstance(grouped_runner(llama, cache), GroupedRunner)
    monkeypatch.setattr(runner_module, "add_low_rank", lambda rows, *_: rows * float("nan"))
    with pytest.raises(FastPathError, match="disagree"):
        grouped_runner(llama, cache)

    def broken(*_):
        raise error

    monkeypatch.setattr(runner_module, "add_low_rank", broken)
    with pytest.raises(FastPathError, match="no driver"):
        grouped_runner(llama, cache)


def test_a_cpu_never_takes_the_gpus_kernels(llama):
    cache = KVCache(llama.spec, 4, llama.dtype, llama.device)
    assert not isinstance(make_runner("auto", llama, cache), GroupedRunner)


COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from graft.server.kernels import grouped

def compiled(kernel, pointers, constants, capability):
    types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))

for capability, dtype, rows in itertools.product((80, 90), ("*bf16", "*fp32"), (16, 64)):
    sizes = dict(ROWS=rows, COLUMNS=grouped.COLUMNS)
    tables = dict(items="*i32", tiles="*i32", sums="*fp32")
    shrink = compiled(grouped.shrink, tables | dict(x=dtype, A=dtype), sizes | dict(STEP=grouped._INPUTS), capability)
    expand = compiled(
        grouped.expand_add, tables | dict(rows_in=dtype, a=dtype, B=dtype, out=dtype),
        sizes | dict(WIDTH=grouped._OUTPUTS, BIASED=True), capability,
    )
    print(capability, dtype, rows, *(kernel.metadata.shared for kernel in (shrink, expand)))
"""


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """Triton's compiler needs no GPU: to machine code for sm_80 and sm_90, within every such GPU's shared memory."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert all(int(shared) <= 99 * 1024 for line in lines for shared in line.split()[-2:])
