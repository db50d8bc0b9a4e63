"""NaN and infinity go through every kernel as they go through torch, and into nobody else's rows.

An adapter that overflows is refused by what its own logits say (engine/sampling.py): no kernel may turn a NaN into a number
on the way there.
"""

import pytest
import torch
import torch.nn.functional as F

from graft.hub.adapters.batched_apply import ACTIVATIONS
from graft.hub.adapters.serving_forms import detours
from graft.server.cache.step import Run, make_batch
from graft.server.cache.tensors import KVCache
from graft.server.runners.cpu.sampler import sample
from graft.server.runners.eager.runner import EagerRunner
from graft.server.sampling.params import Draw, Sampling, Score
from tests.conftest import tiny_base
from tests.server.runners.cpu.conftest import BLOCK, DTYPES, attention_reference, rand

NAN, INF = float("nan"), float("inf")
SPECIAL = (NAN, INF, -INF, 3.0e38, -3.0e38, 1e30, -1e30, 1e4, -1e4, 100.0, -100.0, 88.3, -88.3, 1.0, -1.0, 0.0)
# oneDNN's gelu, which torch takes for some sizes, makes NaN of infinity and infinity of 3e38: here by its definition
REFERENCE = {
    **ACTIVATIONS,
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x * 0.5**0.5)),
    "gelu_pytorch_tanh": ACTIVATIONS["gelu_new"],
}
ROUNDING = {"float32": dict(rtol=1e-5, atol=1e-6), "bfloat16": dict(rtol=2**-7, atol=2**-7)}


def same(got, expected, dtype):
    """Equal but for rounding, NaN where torch has NaN and each infinity where torch has it."""
    torch.testing.assert_close(got.float(), expected.float(), equal_nan=True, **ROUNDING[dtype])


def special(dtype, *shape, seed=0):
    """Random values, a tenth of them special ones."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=draw)
    which = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=draw)]
    return torch.where(torch.rand(shape, generator=draw) < 0.1, which, values).to(DTYPES[dtype][0])


@pytest.mark.parametrize("activation", REFERENCE)
def test_every_activation_is_torchs(kernels, dtype, activation):
    """In the gate, for every special value beside every other, in every lane of a vector."""
    gate = torch.tensor([SPECIAL[i:] + SPECIAL[:i] for i in range(len(SPECIAL))] * 3, dtype=DTYPES[dtype][0]).flatten()[
        :700
    ]
    up = special(dtype, len(gate))
    expected = REFERENCE[activation](gate.float()).to(gate.dtype)
    ones = torch.ones_like(gate)
    same(getattr(kernels, f"gated_{dtype}")(gate, ones, activation), expected, dtype)
    got = getattr(kernels, f"gated_{dtype}")(gate, up, activation)
    assert torch.equal((expected * up).isnan(), got.isnan())


@pytest.mark.parametrize("activation", REFERENCE)
@pytest.mark.parametrize("where", ["input", "down", "bias"])
def test_a_detours_nan_reaches_its_own_rows_alone(kernels, dtype, activation, where):
    """A NaN in the tap that is read, in A, or in a: the row (or the adapter's rows) end as NaN, the neighbour's as before."""
    rows, width, out, rank = 9, 50, 37, 5
    x, y = rand(dtype, rows, width), rand(dtype, rows, out, seed=1)

    def adapter(broken):
        A, B, a = rand(dtype, rank, width, seed=2), rand(dtype, rank, out, seed=3), rand("float32", rank, seed=4)
        if broken:
            (A[2] if where == "down" else a[2:3]).fill_(NAN) if where != "input" else None
        form = kernels.LowRank(tap=1, reads=[0], A=A, B=B, a=a, b=None, activation=activation)
        return getattr(kernels, f"Adapter_{dtype}")(taps=2, vectors=[], low_ranks=[form])

    run, lengths = getattr(kernels, f"detour_{dtype}"), [2, 4, 3]
    healthy = y.clone()
    run([adapter(False), adapter(False)], [x, healthy], 1, lengths)
    got, broken = y.clone(), x.clone()
    if where == "input":
        broken[3, 7] = NAN
    run([adapter(True), adapter(False)], [broken, got], 1, lengths)
    hit = [3] if where == "input" else [2, 3, 4, 5]
    assert got[hit].isnan().all()
    others = [row for row in range(rows) if row not in hit]
    assert torch.equal(got[others], healthy[others])


@pytest.mark.parametrize("part", ["scale", "bias"])
def test_a_vectors_nan_stays(kernels, dtype, part):
    y, width = rand(dtype, 6, 37), 37
    vector = {"scale": rand("float32", width, seed=1), "bias": rand("float32", width, seed=2)}
    vector[part][5] = NAN
    expected = (y.float() * vector["scale"] + vector["bias"]).to(y.dtype)
    adapter = getattr(kernels, f"Adapter_{dtype}")(taps=1, vectors=[kernels.Vector(tap=0, **vector)], low_ranks=[])
    getattr(kernels, f"detour_{dtype}")([adapter], [y], 0, [0, 6])
    same(y, expected, dtype)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("rows", [1, 9, 40, 130])
def test_a_linears_row_is_not_finite_where_torchs_is(kernels, dtype, rows, value):
    x, weight = rand(dtype, rows, 48), rand(dtype, 100, 48, seed=1)
    packed = getattr(kernels, f"Linear_{dtype}")(weight)
    healthy = packed(x)
    x[rows // 2, 31] = value
    got = packed(x)
    same(got[rows // 2], F.linear(x[rows // 2].float(), weight.float()), dtype)
    others = [row for row in range(rows) if row != rows // 2]
    assert torch.equal(got[others], healthy[others])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [8, 30, 64])
def test_norms_and_rotations_are_torchs(kernels, dtype, width, seed):
    x = special(dtype, 40, width, seed=seed)
    weight = rand("float32", width, seed=2)
    got = getattr(kernels, f"rms_norm_{dtype}")(x, weight, 1e-6)
    wide = x.float()
    same(got, wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight, dtype)

    angles = rand("float32", 40, width // 2, seed=3)
    cosine, sine = (f(torch.cat([angles, angles], dim=1)) for f in (torch.cos, torch.sin))
    half = torch.cat([-wide[:, width // 2 :], wide[:, : width // 2]], dim=-1)
    heads = x[:, None].clone()
    getattr(kernels, f"rotate_{dtype}")(heads, cosine, sine)
    expected = (wide * cosine + half * sine).to(x.dtype)
    assert torch.equal(heads[:, 0].isnan(), expected.isnan())
    assert torch.equal(heads[:, 0].isinf(), expected.isinf())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (20, 0.0), (0, 2.0), (3, 2.0)])
def test_attention_is_torchs(kernels, dtype, value, where, window, softcap):
    """A query, one key, or one value that is not finite, at each of some places of the context."""
    heads, kv_heads, dim, length = 6, 2, 40, 50
    for place in (0, 15, 30, 48, 49):
        keys, values = (rand(dtype, 5, BLOCK, kv_heads, dim, seed=i) for i in (1, 2))
        query = rand(dtype, 1, heads, dim)
        table = [3, 1, 4, 2]
        block, row = table[place // BLOCK], place % BLOCK
        {"query": query[0, 2:3], "key": keys[block, row], "value": values[block, row]}[where][..., 7] = value
        got = getattr(kernels, f"attention_{dtype}")(
            query, keys, values, [table], [0], [length - 1], dim**-0.5, window, softcap
        )
        k, v = (x[table].flatten(0, 1)[:length] for x in (keys, values))
        if window:
            k, v = k[-window:], v[-window:]
        same(got[0], attention_reference(query[0], k, v, dim**-0.5, 0, softcap), dtype)


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_a_prompts_rows_have_nan_where_they_see_it(kernels, dtype, where):
    """Rows before the broken one are bit for bit as without it; all from it on are NaN (a broken query: itself alone)."""
    heads, kv_heads, dim, rows, at = 4, 2, 16, 40, 21
    query, table = rand(dtype, rows, heads, dim), [2, 1, 3]
    keys, values = (rand(dtype, 4, BLOCK, kv_heads, dim, seed=i) for i in (1, 2))

    def run():
        return getattr(kernels, f"attention_{dtype}")(
            query, keys, values, [table], [0] * rows, list(range(rows)), 0.3, 0, 0.0
        )

    healthy = run()
    {"query": query[at], "key": keys[1, at - BLOCK], "value": values[1, at - BLOCK]}[where].fill_(NAN)
    got, stop = run(), at + 1 if where == "query" else rows
    assert got[at:stop].isnan().all()
    assert torch.equal(got[:at], healthy[:at]) and torch.equal(got[stop:], healthy[stop:])


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "phi3"])
def test_a_step_keeps_one_sequences_nan_to_itself(kernels, dtype, family):
    """A soft prompt's row that is NaN or infinite: its own logits are what the eager runner says (NaN), and those of
    the others are bit for bit what they are beside a healthy one. The blocks it leaves behind harm nobody."""
    from graft.server.runners.cpu.runner import FastRunner

    base = tiny_base(family)
    base.model.to(DTYPES[dtype][0])
    texts = [list(range(2, 2 + n)) for n in (20, 1, 33)]

    def wanted(rows, first=1):
        yield None, Run(0, (), 0, 0, [first, first + 1], len(rows), rows)
        for i, text in enumerate(texts):
            yield None, Run(0, text, 0, 0, [10 + 3 * i + n for n in range(3)], len(text))

    soft = rand(dtype, 18, base.spec.hidden_size)
    fast = FastRunner(base, KVCache(base.spec, 24, base.dtype, base.device), kernels)
    healthy = fast.run(make_batch(list(wanted(soft)))[0])
    for value in (NAN, INF):
        broken = soft.clone()
        broken[7, 3] = value
        for runner in (fast, EagerRunner(base, KVCache(base.spec, 24, base.dtype, base.device))):
            batch, order = make_batch(list(wanted(broken)))
            split = dict(zip(order, runner.run(batch).split([run.logits for run in batch.runs]), strict=True))
            assert split[0][7:].isnan().all()
            if runner is fast:
                assert split[0][:7].isfinite().all()
                whole = dict(zip(order, healthy.split([run.logits for run in batch.runs]), strict=True))
                assert all(torch.equal(split[i], whole[i]) for i in (1, 2, 3))
            # whoever gets its blocks next, for fewer rows or for single ones, sees nothing of it
            after, _ = make_batch([(None, Run(0, texts[0][:5], 0, 0, [1], 5)), (None, Run(0, [9], 0, 0, [2], 1))])
            assert runner.run(after).isfinite().all()


@pytest.mark.parametrize("kind", ["lora", "houlsby", "parallel", "bitfit", "ia3"])
def test_an_adapter_that_overflows_is_nan_in_its_own_rows(kernels, dtype, kind, make_forms):
    from dataclasses import replace

    from graft.hub.adapters.serving_forms import LowRank
    from graft.server.runners.cpu.runner import FastRunner

    base = tiny_base("llama")
    base.model.to(DTYPES[dtype][0])
    forms = detours(make_forms(kind, base, 1))

    def large(form):
        if isinstance(form, LowRank):
            return replace(form, A=form.A * 1e30, B=form.B * 1e30)
        return (
            replace(form, bias=torch.full_like(form.bias, INF))
            if form.bias is not None
            else replace(form, scale=torch.full_like(form.scale, INF))
        )

    runner = FastRunner(base, KVCache(base.spec, 24, base.dtype, base.device), kernels)
    runner.add("good", runner.prepare(forms))
    runner.add("bad", runner.prepare([large(form) for form in forms]))

    def logits(second):
        wanted = [
            (owner, Run(0, list(range(2, 12)), 0, 0, [1 + i], 10)) for i, owner in enumerate((None, "good", second))
        ]
        batch, order = make_batch(wanted)
        return dict(zip(order, runner.run(batch).split(10), strict=True))

    runner.add("twin", runner.prepare(forms))
    alone, beside = logits("twin"), logits("bad")
    assert not beside[2].isfinite().any()
    for i in (0, 1):
        assert torch.equal(alone[i], beside[i]) and beside[i].isfinite().all()


RULES = {
    "greedy": Sampling(temperature=0),
    "reported": Sampling(temperature=0, logprobs=3),
    "temperature": Sampling(),
    "top_k": Sampling(top_k=5),
    "top_p": Sampling(top_p=0.9),
    "min_p": Sampling(min_p=0.1),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_row_that_is_not_finite_yields_nothing(kernels, dtype, value, rules):
    """Wherever in the row it is, alone or everywhere; the rows beside it are drawn as without it."""
    width = 333
    logits = rand(dtype, 6, width)
    draws = [(row, Draw(RULES[rules], seed=row)) for row in range(6)]
    scores = [(row, Score((3, 5), top=2)) for row in range(6)]
    want = sample(kernels, logits, draws, scores)
    for place in (slice(0, 1), slice(100, 101), slice(332, 333), slice(0, width)):
        broken = logits.clone()
        broken[2, place] = value
        got = sample(kernels, broken, draws, scores)
        assert got.tokens[2] is None and got.scores[2] is None
        for row in (0, 1, 3, 4, 5):
            assert (got.tokens[row], got.scores[row]) == (want.tokens[row], want.scores[row])


def test_a_row_without_a_chance_yields_nothing_and_impossible_tokens_are_not_reported(kernels, dtype):
    logits = torch.full((2, 300), -INF, dtype=DTYPES[dtype][0])
    logits[1, [7, 250]] = torch.tensor([1.0, 2.0], dtype=DTYPES[dtype][0])
    got = sample(kernels, logits, [(0, Draw(Sampling()))], [(0, Score((), 5)), (1, Score((7,), 5))])
    assert got.tokens == [None] and got.scores[0] is None
    assert [id for id, _ in got.scores[1][0].top] == [250, 7]
