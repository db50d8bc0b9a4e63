"""Each C++ kernel against plain torch in float32, odd sizes included.

Tolerances: float32 kernels differ by the order of additions (1e-5 relative to the largest value); bfloat16 kernels
add up in float32 and round once, so they stay within one rounding of the exact result (2^-8 of the largest value).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from graft.hub.adapters.batched_apply import ACTIVATIONS
from graft.server.runners.cpu.build import BuildError, _compiler, load
from graft.server.runners.cpu.taps import HEAD_TAPS, LAYER_TAPS
from tests.server.runners.cpu.conftest import BLOCK, DTYPES, attention_reference, close, rand


def test_where_there_is_a_compiler_there_are_kernels():
    try:
        _compiler()
    except BuildError as error:
        pytest.skip(str(error))
    assert load() is not None, "the build failed: every other test of the kernels skips"


@pytest.mark.parametrize("rows", [1, 7, 8, 33, 130])
@pytest.mark.parametrize(("width", "out"), [(32, 10), (48, 96), (34, 100), (4130, 50)])
def test_linear(kernels, dtype, rows, width, out):
    x, weight, bias = rand(dtype, rows, width), rand(dtype, out, width, seed=1), rand(dtype, out, seed=2)
    packed = getattr(kernels, f"Linear_{dtype}")
    close(packed(weight, bias)(x), F.linear(x.float(), weight.float(), bias.float()), dtype)
    close(packed(weight)(x), F.linear(x.float(), weight.float()), dtype)


@pytest.mark.parametrize("width", [30, 64, 98])
def test_a_rows_product_does_not_depend_on_other_rows(kernels, dtype, width):
    x, weight = rand(dtype, 200, width), rand(dtype, 100, width, seed=1)
    packed = getattr(kernels, f"Linear_{dtype}")(weight)
    whole = packed(x)
    for rows in (slice(0, 1), slice(3, 11), slice(20, 36), slice(70, 95), slice(150, 200)):
        assert torch.equal(packed(x[rows].contiguous()), whole[rows])


@pytest.mark.parametrize("width", [8, 30, 64])
def test_norm_rotation_and_gate(kernels, dtype, width):
    x, y = rand(dtype, 5, width), rand(dtype, 5, width, seed=1)
    weight = rand("float32", width, seed=2)
    normed = getattr(kernels, f"rms_norm_{dtype}")(x, weight, 1e-6)
    close(normed, F.rms_norm(x.float(), (width,), weight, 1e-6), dtype)

    angles = rand("float32", 5, width // 2, seed=3)
    cosine, sine = (f(torch.cat([angles, angles], dim=1)) for f in (torch.cos, torch.sin))
    heads = torch.stack([x, y], dim=1)
    half = torch.cat([-heads[..., width // 2 :], heads[..., : width // 2]], dim=-1).float()
    expected = heads.float() * cosine[:, None] + half * sine[:, None]
    getattr(kernels, f"rotate_{dtype}")(heads, cosine, sine)
    close(heads, expected, dtype)

    for name, function in {"silu": F.silu, "gelu_pytorch_tanh": ACTIVATIONS["gelu_new"], "gelu": F.gelu}.items():
        close(getattr(kernels, f"gated_{dtype}")(x, y, name), function(x.float()) * y.float(), dtype)


def test_gate_of_extreme_values_is_finite(kernels, dtype):
    x = torch.tensor([[-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4, 1.0]], dtype=DTYPES[dtype][0])
    close(getattr(kernels, f"gated_{dtype}")(x, torch.ones_like(x), "silu"), F.silu(x.float()), dtype)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (0, 2.0), (3, 2.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 8), (10, 2, 80), (5, 1, 128)])
def test_paged_attention(kernels, dtype, heads, kv_heads, dim, window, softcap):
    lengths = [1, 15, 16, 17, 90]
    keys, values = (rand(dtype, 24, BLOCK, kv_heads, dim, seed=i) for i in (1, 2))
    values[0] = keys[0] = float("nan")  # nobody's block
    query, scale = rand(dtype, len(lengths), heads, dim), dim**-0.5
    shuffled = (torch.randperm(23, generator=torch.Generator().manual_seed(3)) + 1).tolist()
    tables = [shuffled[i : i + 6] for i in range(len(lengths))]
    slots = [length - 1 for length in lengths]
    attend, sequence = getattr(kernels, f"attention_{dtype}"), list(range(len(lengths)))
    got = attend(query, keys, values, tables, sequence, slots, scale, window, softcap)
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        k, v = (x[table].flatten(0, 1)[:length] for x in (keys, values))
        close(got[row], attention_reference(query[row], k, v, scale, window, softcap), dtype)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (3, 2.0), (100, 0.0)])
@pytest.mark.parametrize("first", [13, 150])
def test_a_prompts_rows_attend_as_each_does_alone(kernels, dtype, first, window, softcap):
    """Bit for bit, wherever a prompt is cut and whatever the other rows ask; what lies behind a row is never looked at."""
    heads, kv_heads, dim, rows = 10, 2, 40, 45
    table = torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()[: -(-(first + rows) // BLOCK)]
    keys, values = (rand(dtype, 20, BLOCK, kv_heads, dim, seed=i) for i in (1, 2))
    slots = list(range(first, first + rows))
    for x in (keys, values):
        x[table[-1], (first + rows - 1) % BLOCK + 1 :] = float("nan")
    query, attend = rand(dtype, rows, heads, dim), getattr(kernels, f"attention_{dtype}")
    whole = attend(query, keys, values, [table], [0] * rows, slots, 0.2, window, softcap)
    assert whole.isfinite().all()
    for cut in (slice(0, 1), slice(1, 20), slice(20, rows)):
        part = attend(query[cut], keys, values, [table], [0] * len(slots[cut]), slots[cut], 0.2, window, softcap)
        assert torch.equal(part, whole[cut])
    alone = attend(query, keys, values, [table] * rows, list(range(rows)), slots, 0.2, window, softcap)
    assert torch.equal(alone, whole)
    broken = torch.full_like(query, float("nan"))
    broken[17] = query[17]
    beside = attend(broken, keys, values, [table], [0] * rows, slots, 0.2, window, softcap)
    assert torch.equal(beside[17], whole[17])


def test_a_head_of_odd_width_is_refused(kernels, dtype):
    query, cache = rand(dtype, 2, 2, 7), rand(dtype, 2, BLOCK, 1, 7)
    with pytest.raises(ValueError, match="even number of values, not 7"):
        getattr(kernels, f"attention_{dtype}")(query, cache, cache, [[1]], [0, 0], [3, 4], 0.2, 0, 0.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("out", "lengths"), [(37, (2, 1, 1)), (128, (0, 3, 21)), (150, (1, 40, 5)), (37, (1, 7, 4))])
def test_detours_of_adapters_of_unlike_rank(kernels, dtype, activation, out, lengths):
    """Adapter 0: a Vector and a LowRank that reads the tap itself; adapter 1: two channels, one reads two taps."""
    width, total = 50, sum(lengths)
    first, second, target = (
        rand(dtype, total, width),
        rand(dtype, total, width, seed=1),
        rand(dtype, total, out, seed=2),
    )
    scale, shift = rand("float32", out, seed=3), rand("float32", out, seed=4)
    forms = {
        0: [((2,), 5, out)],
        1: [((0,), 16, width), ((0, 1), 21, width)],
    }
    adapters, tensors = [], {}
    for owner, channels in forms.items():
        low_ranks = []
        for i, (reads, rank, size) in enumerate(channels):
            A = rand(dtype, rank, size, seed=10 + i, scale=size**-0.5)
            B = rand(dtype, rank, out, seed=20 + i, scale=rank**-0.5)
            a, b = rand("float32", rank, seed=30 + i), rand("float32", out, seed=40 + i)
            low_ranks.append(kernels.LowRank(tap=2, reads=list(reads), A=A, B=B, a=a, b=b, activation=activation))
            tensors[owner, i] = (A.float(), B.float(), a, b)
        vectors = [kernels.Vector(tap=2, scale=scale, bias=shift)] if owner == 0 else []
        adapters.append(getattr(kernels, f"Adapter_{dtype}")(taps=3, vectors=vectors, low_ranks=low_ranks))
    expected = target.float().clone()
    rows = [slice(lengths[0], lengths[0] + lengths[1]), slice(lengths[0] + lengths[1], total)]
    own = (expected[rows[0]] * scale + shift).to(target.dtype).float()
    taps = {(2,): own, (0,): first[rows[1]].float(), (0, 1): (first + second)[rows[1]].float()}
    expected[rows[0]] = own
    for owner, channels in forms.items():
        for i, (reads, _, _) in enumerate(channels):
            A, B, a, b = tensors[owner, i]
            hidden = ACTIVATIONS[activation](F.linear(taps[reads], A, a)).to(target.dtype).float()
            expected[rows[owner]] += hidden @ B + b
    bare = target[: lengths[0]].clone()
    getattr(kernels, f"detour_{dtype}")(adapters, [first, second, target], 2, list(lengths))
    assert torch.equal(target[: lengths[0]], bare)
    close(target, expected, dtype)


def test_argmax_takes_the_first_of_equals(kernels, dtype):
    logits = rand(dtype, 40, 333)
    logits[3, [5, 70, 332]] = 100.0
    logits[4] = 1.0
    logits[5] = float("-inf")
    logits[6, [7, 331]] = float("nan")
    logits[7, 332] = float("nan")
    logits[8, :100] = float("-inf")
    assert torch.equal(getattr(kernels, f"argmax_{dtype}")(logits), logits.float().argmax(dim=-1))


def test_python_and_the_kernels_number_taps_alike(kernels):
    assert (kernels.LAYER_TAPS, kernels.HEAD_TAPS) == (LAYER_TAPS, HEAD_TAPS)


def test_an_unknown_activation_is_refused(kernels, dtype):
    A, B = rand(dtype, 2, 4), rand(dtype, 2, 4)
    form = kernels.LowRank(tap=0, reads=[0], A=A, B=B, a=None, b=None, activation="mish")
    with pytest.raises(ValueError, match="unknown activation"):
        getattr(kernels, f"Adapter_{dtype}")(taps=1, vectors=[], low_ranks=[form])


def test_without_a_compiler_there_are_none(monkeypatch, caplog, tmp_path):
    from graft.server.runners.cpu import build

    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("GRAFT_KERNELS", str(tmp_path))
    build._load.cache_clear()
    try:
        assert build.load() is None
        assert "no-such-compiler was not found" in caplog.text
    finally:
        build._load.cache_clear()


@pytest.mark.slow
def test_the_kernels_of_a_machine_without_matrix_registers(tmp_path):
    """Where there are some, what is built without them passes these tests as well."""
    if "amx_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no AMX: what every other test runs is built without it")
    tests = [str(Path(__file__).parent / f"test_{name}.py") for name in ("kernels", "not_finite")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *tests],
        env={**os.environ, "CXXFLAGS": "-mno-amx-bf16", "GRAFT_KERNELS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "no C++ compiler" not in done.stdout


def test_a_failed_build_leaves_nothing_and_says_why(monkeypatch, caplog, tmp_path):
    from graft.server.runners.cpu import build

    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "bindings.cpp").write_text("#error on purpose\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setenv("GRAFT_KERNELS", str(tmp_path / "built"))
    build._load.cache_clear()
    try:
        assert build.load() is None
        assert "on purpose" in caplog.text
        assert not list((tmp_path / "built").rglob("*.so"))
    finally:
        build._load.cache_clear()
