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

from graft.hub.adapters import batched_apply
from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.serving_forms import LowRank, Vector
from graft.hub.base.hook_points import Tap
from graft.server.cache.tensors import KVCache
from graft.server.runners.factory import make_runner
from graft.server.runners.protocol import FastPathError

pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
from graft.server.runners.cuda import decode_step, detours
from graft.server.runners.cuda import runner as runner_module
from graft.server.runners.cuda.adapter_table import AdapterTable
from graft.server.runners.cuda.detours import GroupedStep
from graft.server.runners.cuda.graphs import GraphError
from graft.server.runners.cuda.kernels import detours as kernels
from graft.server.runners.cuda.launches import Layouts
from graft.server.runners.cuda.runner import GroupedRunner, grouped_runner
from tests.conftest import tiny_base

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
READ, TAP = Tap("x", "out"), Tap("y", "out")
SPEC = tiny_base("llama").spec


def form(draw, rank, width, out, activation="none", biased=False, dtype=torch.float32):
    """A random detour whose values are of `dtype`."""
    shapes = {"A": (rank, width), "B": (rank, out)} | ({"a": (rank,), "b": (out,)} if biased else {})
    spread = {"A": width**-0.5, "B": rank**-0.5, "a": 0.5, "b": 0.5}
    tensors = {
        name: (torch.randn(shape, generator=draw) * spread[name]).to(dtype).float() for name, shape in shapes.items()
    }
    return LowRank((READ,), TAP, **tensors, activation=activation, scale=0.5)


def visited(step, rows, x):
    """What a step makes of the rows [T, out] at TAP, after x [T, in] has passed READ."""
    step.visit(READ, x)
    return step.visit(TAP, rows)


def expected(owned, rows, x, whose):
    """By the eager detours, in float32 on the CPU. owned: (adapter, its detour)."""
    adapters = [[form for owner, form in owned if owner == i] for i in range(len(whose.lengths))]
    step = Step(Stack(adapters, torch.float32, torch.device("cpu")), whose, lm_head="")
    return visited(step, rows.float(), x.float())


def grouped_step(owned, whose, dtype, device=DEVICE):
    """The step of the GPU's runner, and the bank that holds what it reads. owned: (adapter, its detour)."""
    bank, adapters = AdapterTable(dtype, device), range(len(whose.lengths))
    for i in adapters:
        bank.add(str(i), bank.prepare([form for owner, form in owned if owner == i]))
    names = [str(i) for i in adapters]
    slots = [0, *map(bank.slot, names)]
    tiles = kernels.make_tiles([*zip((whose.bare, *whose.lengths), slots, strict=True)], device)
    return GroupedStep(Layouts(bank, SPEC).exact_plan(names), tiles, tiles, ""), bank


def grouped(owned, rows, x, whose, dtype=torch.float32):
    step, _bank = grouped_step(owned, whose, dtype)
    return visited(step, rows.to(DEVICE, dtype), x.to(DEVICE, dtype)).cpu()


def assert_as_eager(owned, whose, width, out, dtype, draw):
    rows, x = (torch.randn(whose.total, n, generator=draw).to(dtype) for n in (out, width))
    exact = expected(owned, rows, x, whose)
    got = grouped(owned, rows, x, whose, dtype).float()
    assert (got - exact).abs().max() <= DTYPES[dtype] * exact.abs().max()
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
                draw,
                rng.randint(1, 64),
                width,
                out,
                rng.choice(list(batched_apply.ACTIVATIONS)),
                rng.random() < 0.5,
                dtype,
            ),
        )
        for owner in owners
    ]
    lengths = [rng.choice([0, 1, 1, 2, 5] if seed % 2 else [0, 1, 16, 17, 65, 90]) for _ in range(adapters)]
    lengths[owners[0]] += 1  # a step in which nobody has rows here does not come to a channel
    assert_as_eager(owned, RowOwners(rng.choice([0, 1, 20]), tuple(lengths)), width, out, dtype, draw)


def test_every_activation_is_known():
    assert set(kernels.ACTIVATIONS) == set(batched_apply.ACTIVATIONS)


@pytest.mark.parametrize("activation", batched_apply.ACTIVATIONS)
def test_each_activation(activation, draw):
    """On values from very negative to very positive."""
    owned = [(0, form(draw, 9, 32, 40, activation)), (1, form(draw, 3, 32, 40, activation, biased=True))]
    rows, x = torch.zeros(6, 40), torch.randn(6, 32, generator=draw) * torch.logspace(-3, 2, 6)[:, None]
    whose = RowOwners(0, (3, 3))
    torch.testing.assert_close(grouped(owned, rows, x, whose), expected(owned, rows, x, whose), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", batched_apply.ACTIVATIONS)
def test_each_activation_keeps_what_is_no_number(activation, draw):
    owned, whose = [(0, form(draw, 9, 32, 40, activation))], RowOwners(0, (3,))
    x = torch.randn(3, 32, generator=draw)
    x[1, 5] = torch.nan
    made = grouped(owned, torch.zeros(3, 40), x, whose)
    assert made[1].isnan().all() and made[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("owners", [(1,), (1, 2)], ids=str)
def test_rows_of_others_keep_their_bits(owners, dtype, draw):
    """Bare rows and those of an adapter without a detour here: negative zero, infinity and all."""
    rows, x = (torch.randn(40, 50, generator=draw).to(dtype) for _ in range(2))
    rows[0], rows[1], rows[2] = -0.0, torch.inf, -torch.inf
    rows[9] = -0.0
    owned = [(owner, form(draw, 5, 50, 50)) for owner in owners]
    got = grouped(owned, rows, x, RowOwners(8, (20, 12, 0)), dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(got[:28].view(bits), rows[:28].view(bits))
    assert not torch.equal(got[28:], rows[28:])


def test_a_neighbours_infinities_stay_with_it(draw):
    owned = [(i, form(draw, 4 + 20 * i, 32, 32)) for i in range(3)]
    rows, x = (torch.randn(9, 32, generator=draw) for _ in range(2))
    whose = RowOwners(1, (2, 3, 3))
    clean = grouped(owned, rows, x, whose)
    x[3:6] = torch.inf
    spoiled = grouped(owned, rows, x, whose)
    others = [0, 1, 2, 6, 7, 8]
    assert not spoiled[3:6].isfinite().any()
    assert torch.equal(spoiled[others], clean[others])


def test_a_rows_result_does_not_depend_on_its_neighbours(draw):
    """Decoding rows: the same bits alone and in company."""
    owned = [(i, form(draw, rank, 600, 70, "silu", biased=True)) for i, rank in enumerate((8, 64, 33))]
    rows, x = torch.randn(9, 70, generator=draw), torch.randn(9, 600, generator=draw)
    mixed = grouped(owned, rows, x, RowOwners(1, (2, 3, 3)))
    alone = grouped([(0, owned[1][1])], rows[3:6], x[3:6], RowOwners(0, (3,)))
    assert torch.equal(mixed[3:6], alone)


def test_strided_rows_are_read_where_they_lie(draw):
    """A part of a fused projection's output; and columns that are not one after another."""
    wide_rows, wide_x = (torch.randn(20, 200, generator=draw).to(DEVICE) for _ in range(2))
    owned = [(0, form(draw, 12, 60, 70))]
    for rows, x in (
        (wide_rows[:, 40:110], wide_x[:, 90:150]),
        (wide_rows[:, :140:2], wide_x[:, :120:2]),
    ):
        before = rows.clone()
        step, _bank = grouped_step(owned, RowOwners(3, (17,)), torch.float32)
        got = visited(step, rows, x)
        step.release()
        assert torch.equal(got, visited(step, rows.contiguous(), x.contiguous()))
        assert torch.equal(rows, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_equal_the_eager_ones(dtype, draw):
    """Scale, bias, both and none, before a low-rank detour at the same tap; the bare rows keep their bits."""
    scale, bias = torch.rand(130, generator=draw).to(dtype).float(), torch.randn(130, generator=draw).to(dtype).float()
    owned = [(0, Vector(TAP, scale)), (1, Vector(TAP, None, bias)), (2, Vector(TAP, scale, bias))]
    owned += [(2, form(draw, 4, 45, 130, dtype=dtype)), (3, form(draw, 4, 45, 130, dtype=dtype))]
    assert_as_eager(owned, RowOwners(2, (1, 20, 3, 1)), 45, 130, dtype, draw)


def test_an_adapters_second_detour_with_the_same_taps_is_added_too(draw):
    owned = [(0, form(draw, 4, 32, 40)), (0, form(draw, 20, 32, 40, "silu", biased=True)), (1, form(draw, 7, 32, 40))]
    assert_as_eager(owned, RowOwners(1, (2, 2)), 32, 40, torch.float32, draw)


def test_ranks_are_padded_nowhere_in_memory(draw):
    """24 adapters of rank 64 and 8 of rank 8: under 1 % of the bank's bytes are there for alignment."""
    forms = [form(draw, 64 if i < 24 else 8, 32, 32) for i in range(32)]
    bank = AdapterTable(torch.float32, DEVICE)
    total = sum(bank.prepare([form]).bytes for form in forms)
    assert total <= 1.01 * sum(form.A.nbytes + form.B.nbytes for form in forms)


@pytest.mark.parametrize(
    "error", [RuntimeError("no driver"), subprocess.CalledProcessError(1, "gcc, no driver")], ids=repr
)
def test_a_gpu_whose_kernels_fail_is_served_without_them(error, llama, monkeypatch):
    """The check at the engine's start: wrong results and errors are reasons, not crashes."""
    llama.model.to(DEVICE)
    cache = KVCache(llama.spec, 4, llama.dtype, llama.device)
    assert isinstance(grouped_runner(llama, cache), GroupedRunner)
    monkeypatch.setattr(detours, "add_low_rank", lambda rows, *_: rows * float("nan"))
    with pytest.raises(FastPathError, match="disagree"):
        grouped_runner(llama, cache)

    def broken(*_):
        raise error

    monkeypatch.setattr(detours, "add_low_rank", broken)
    with pytest.raises(FastPathError, match="no driver"):
        grouped_runner(llama, cache)


@pytest.mark.parametrize("failing", ["attend", "record"])
def test_a_gpu_whose_static_steps_fail_is_served_without_them(failing, llama, monkeypatch, caplog):
    """Their check at the engine's start: wrong logits and errors cost the graphs, and nothing else."""
    llama.model.to(DEVICE)
    if failing == "attend":
        monkeypatch.setattr(decode_step, "attend_rows", lambda query, *_, **__: query * float("nan"))
    else:
        monkeypatch.setattr(runner_module, "call_directly", refuse)
        monkeypatch.setattr(runner_module.Graphs, "record", lambda self, function: refuse(function))
    runner = grouped_runner(llama, KVCache(llama.spec, 4, llama.dtype, llama.device))
    assert not runner.static
    assert "without CUDA graphs" in caplog.text
    assert ("disagree" if failing == "attend" else "Not today") in caplog.text


def refuse(function):
    raise GraphError("Not today.")


def test_a_cpu_never_takes_the_gpus_kernels(llama):
    cache = KVCache(llama.spec, 4, llama.dtype, llama.device)
    assert not isinstance(make_runner("auto", llama, cache), GroupedRunner)


COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from graft.server.runners.cuda.kernels import detours as grouped
from graft.server.runners.cuda.kernels import attention

def compiled(kernel, dtype, capability, **constants):
    types = {name: "constexpr" if name in constants else KNOWN.get(name, "i32") for name in kernel.arg_names}
    types |= {name: dtype for name in ("x", "rows_in", "out", "query", "keys", "values") if name in types}
    source = ASTSource(kernel, types, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))

KNOWN = dict.fromkeys(("table", "tiles", "columns", "tables", "firsts", "lengths"), "*i64")
KNOWN |= dict.fromkeys(("sums", "peaks", "norms"), "*fp32") | dict(scaling="fp32", softcap="fp32")
for capability, dtype in itertools.product((80, 90), ("*bf16", "*fp32")):
    kernels = []
    for rows in (16, 64):
        sizes = dict(ROWS=rows, COLUMNS=grouped.COLUMNS)
        kernels += [
            compiled(grouped.shrink, dtype, capability, **sizes, STEP=grouped._INPUTS),
            compiled(grouped.expand_add, dtype, capability, **sizes, WIDTH=grouped._OUTPUTS),
            compiled(grouped.scale_shift, dtype, capability, ROWS=rows, WIDTH=grouped._OUTPUTS),
        ]
    for width, capped in ((64, False), (256, True)):
        keys = attention.keys_at_a_time(width, 2 if dtype == "*bf16" else 4)
        sizes = dict(HEADS=16, WIDTH=width, KEYS=keys, BLOCK_ROWS=16)
        kernels += [
            compiled(attention.attend_part, dtype, capability, CAPPED=capped, **sizes),
            compiled(attention.join_parts, dtype, capability, PARTS=16, WIDTH=width),
        ]
    print(capability, dtype, *(kernel.metadata.shared for kernel in kernels))
"""


def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """Triton's compiler needs no GPU: to machine code for sm_80 and sm_90, within every such GPU's shared memory."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert all(int(shared) <= 99 * 1024 for line in lines for shared in line.split()[2:]), done.stdout
