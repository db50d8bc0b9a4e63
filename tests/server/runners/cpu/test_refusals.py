"""What a caller hands in wrongly raises one ValueError that says what is wrong, before a kernel reads or writes by it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from graft.hub.adapters.serving_forms import detours
from graft.server.cache.step import BLOCK_ROWS, Run, make_batch
from graft.server.cache.tensors import KVCache
from graft.server.runners.cpu.runner import FastRunner
from graft.server.runners.cpu.weights import obstacle
from graft.server.runners.factory import make_runner
from graft.server.runners.protocol import FastPathError
from graft.server.sampling.params import EDIT
from tests.conftest import tiny_base
from tests.server.runners.cpu.conftest import DTYPES, rand

BLOCKS, ROWS = 6, 20


class Call:
    """The arguments of one `Model.step` of the tiny Llama, as good as the runner's."""

    def __init__(self, kernels, dtype, make_forms):
        self.base = tiny_base("llama")
        self.base.model.to(DTYPES[dtype][0])
        self.cache = KVCache(self.base.spec, BLOCKS, self.base.dtype, self.base.device)
        self.runner = FastRunner(self.base, self.cache, kernels)
        self.model, self.kernels, self.dtype = self.runner._model, kernels, dtype
        self.adapter = self.runner.prepare(detours(make_forms("lora", self.base))).adapter
        self.run = dict(owner=1, length=ROWS, start=0, position=0, logits=2, hidden=0)
        self.arguments = dict(
            rows=rand(dtype, ROWS, 32), keys=self.cache.keys, values=self.cache.values, tables=[[1, 2]],
            adapters=[self.adapter],
        )  # fmt: skip

    def step(self):
        given = self.arguments
        run = self.kernels.Run(*self.run.values())
        logits, _ = self.model.step(
            given["rows"], given["keys"], given["values"], given.get("runs", [run]), given["tables"], given["adapters"]
        )
        return logits


@pytest.fixture
def call(kernels, dtype, make_forms):
    return Call(kernels, dtype, make_forms)


def reshaped(name, change):
    """The cache's keys or values after `change`."""
    return lambda call: call.arguments.update({name: change(call.arguments[name])})


def given(**changes):
    return lambda call: call.arguments.update(changes)


def running(**changes):
    return lambda call: call.run.update(changes)


WRONG = {
    "another block size": (reshaped("keys", lambda x: x.reshape(2, 2 * BLOCKS, 8, 2, 8)), "keys must be"),
    "other kv heads": (reshaped("keys", lambda x: x.reshape(2, BLOCKS, 16, 4, 4)), "keys must be"),
    "another head size": (reshaped("values", lambda x: x[..., :4].contiguous()), "values must be"),
    "fewer layers": (reshaped("keys", lambda x: x[:1]), "keys must be"),
    "more layers": (reshaped("keys", lambda x: torch.cat([x, x])), "keys must be"),
    "fewer blocks of values": (reshaped("values", lambda x: x[:, :3].contiguous()), "values must be"),
    "a cache without layers": (reshaped("keys", lambda x: x[0]), "keys must be"),
    "another dtype": (reshaped("keys", lambda x: x.to(torch.float16)), "keys must be"),
    "keys that are not contiguous": (reshaped("keys", lambda x: x.mT.contiguous().mT), "contiguous"),
    "values that are not contiguous": (reshaped("values", lambda x: x.mT.contiguous().mT), "contiguous"),
    "rows of another width": (reshaped("rows", lambda x: x[:, :30].contiguous()), "rows must be"),
    "rows of another dtype": (reshaped("rows", lambda x: x.double()), "rows must be"),
    "rows that are not contiguous": (reshaped("rows", lambda x: x.mT.contiguous().mT), "contiguous"),
    "fewer rows than the runs have": (reshaped("rows", lambda x: x[:-1]), "rows must be"),
    "more rows than the runs have": (reshaped("rows", lambda x: torch.cat([x, x])), "rows must be"),
    "positions behind the rotations": (running(position=BLOCKS * BLOCK_ROWS - ROWS + 1), "positions"),
    "a negative position": (running(position=-1), "positions"),
    "a block behind the cache": (given(tables=[[1, BLOCKS]]), "names block 6 of 6"),
    "a negative block": (given(tables=[[-1, 2]]), "names block -1"),
    "a table too short": (given(tables=[[1]]), "lacks blocks"),
    "a start behind the table": (running(start=2 * BLOCK_ROWS), "lacks blocks"),
    "a negative start": (running(start=-1), "lacks blocks"),
    "an owner that is not there": (running(owner=2), "owner is 2 of 1"),
    "a negative owner": (running(owner=-1), "owner is -1"),
    "no rows": (running(length=0), "0 rows"),
    "more logits than rows": (running(logits=ROWS + 1), "logits"),
    "negative logits": (running(logits=-1), "logits"),
    "more hidden states than rows": (running(hidden=ROWS + 1), "hidden states of"),
    "negative hidden states": (running(hidden=-1), "hidden states of"),
    "fewer tables than runs": (given(tables=[]), "1 runs have 0"),
    "no adapter": (given(adapters=[None]), "no adapter"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_step_is_refused_and_changes_nothing(call, wrong):
    change, message = WRONG[wrong]
    assert call.step().isfinite().all()
    keys, values = call.cache.keys.clone(), call.cache.values.clone()
    good = dict(call.arguments), dict(call.run)
    change(call)
    with pytest.raises(ValueError, match=message):
        call.step()
    assert torch.equal(call.cache.keys, keys) and torch.equal(call.cache.values, values)
    call.arguments, call.run = good
    assert call.step().isfinite().all()


def test_runs_out_of_order_are_refused(call):
    runs = [call.kernels.Run(owner, 10, 0, 0, 2, 0) for owner in (1, 0)]
    call.arguments.update(runs=runs, tables=[[1], [2]])
    with pytest.raises(ValueError, match="sorted by owner"):
        call.step()


# An adapter: (tap, reads, columns of A, columns of B, or a Vector's size)
TAPS = {
    "a tap behind the last": (dict(tap=43), "no tap 43"),
    "a negative tap": (dict(tap=-1), "no tap -1"),
    "a tap that can't be changed": (dict(tap=0), "no tap 0"),
    "a norm that this base hasn't got": (dict(tap=10), "no tap 10"),
    "a tap to read that comes later": (dict(tap=5, reads=[9]), "nothing yet at 9"),
    "a tap to read of nowhere": (dict(tap=5, reads=[-1]), "nothing yet at -1"),
    "nothing to read": (dict(tap=5, reads=[]), "without rank, width or tap"),
    "an input of another width": (dict(tap=5, width=30), "A has 30 columns, tap 2 has 32"),
    "two taps of unlike width": (dict(tap=42, reads=[1, 2], out=300), "A has 32 columns, tap 42 has 300"),
    "an output of another width": (dict(tap=5, out=30), "B has 30 columns, tap 5 has 32"),
    "a scale of another size": (dict(scale=31), "scale must have 32 numbers, not 31"),
    "a bias of another size": (dict(bias=33), "bias must have 32 numbers, not 33"),
}


@pytest.mark.parametrize("wrong", TAPS)
def test_an_adapter_that_does_not_fit_the_base_is_refused(call, wrong):
    changes, message = TAPS[wrong]
    kernels, dtype = call.kernels, call.dtype

    def adapter():
        if "scale" in changes or "bias" in changes:
            sizes = {name: rand("float32", changes[name]) if name in changes else None for name in ("scale", "bias")}
            vectors, low_ranks = [kernels.Vector(tap=9, **sizes)], []
        else:
            form = {"tap": 5, "reads": [2], "width": 32, "out": 32} | changes
            A, B = rand(dtype, 3, form["width"]), rand(dtype, 3, form["out"])
            low = dict(tap=form["tap"], reads=form["reads"], A=A, B=B, a=None, b=None, activation="none")
            vectors, low_ranks = [], [kernels.LowRank(**low)]
        return getattr(kernels, f"Adapter_{dtype}")(taps=43, vectors=vectors, low_ranks=low_ranks)

    with pytest.raises(ValueError, match=message):
        call.model.require_fits(adapter())
    with pytest.raises(ValueError, match=message):  # neither does a step take it
        call.arguments["adapters"] = [adapter()]
        call.step()


def test_an_adapter_of_another_base_is_refused(call):
    other = getattr(call.kernels, f"Adapter_{call.dtype}")(taps=23, vectors=[], low_ranks=[])
    with pytest.raises(ValueError, match="the adapter has 23 taps, the model 43"):
        call.model.require_fits(other)


MATRICES = {
    "another dtype": (lambda form: form | {"B": form["B"].double()}, "B must be"),
    "a dtype of the same size": (lambda form: form | {"A": form["A"].to(torch.float16)}, "A must be"),
    "another rank": (lambda form: form | {"B": form["B"][:2]}, "B must be"),
    "a vector": (lambda form: form | {"A": form["A"][0]}, "A must be"),
    "a rank of none": (lambda form: form | {"A": form["A"][:0], "B": form["B"][:0]}, "without rank"),
    "a bias of another rank": (lambda form: form | {"a": torch.zeros(2)}, "a must have 3 numbers"),
    "a bias of another width": (lambda form: form | {"b": torch.zeros(2)}, "b must have 4 numbers"),
    "a matrix for a bias": (lambda form: form | {"b": torch.zeros(2, 2)}, "one dimension"),
}


@pytest.mark.parametrize("wrong", MATRICES)
def test_matrices_that_do_not_belong_together_are_refused(kernels, dtype, wrong):
    change, message = MATRICES[wrong]
    form = dict(tap=0, reads=[0], A=rand(dtype, 3, 6), B=rand(dtype, 3, 4), a=None, b=None, activation="none")
    with pytest.raises(ValueError, match=message):
        getattr(kernels, f"Adapter_{dtype}")(taps=1, vectors=[], low_ranks=[kernels.LowRank(**change(form))])


def test_linears_of_another_dtype_or_shape_are_refused(kernels, dtype):
    linear, weight = getattr(kernels, f"Linear_{dtype}"), rand(dtype, 4, 6)
    other = rand("bfloat16" if dtype == "float32" else "float32", 4, 6)
    for wrong in (other, weight.double(), weight.to(torch.float16), weight[0], weight[None]):
        with pytest.raises(ValueError, match="weight must be"):
            linear(wrong)
    for bias in (torch.zeros(3), torch.zeros(5), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"bias must have|one dimension"):
            linear(weight, bias)
    assert torch.equal(linear(weight.T.contiguous().T)(weight), linear(weight)(weight))  # any strides


def test_every_single_kernel_looks_at_what_it_is_given(kernels, dtype):
    """They ship in the same module as the model."""
    of = {name: getattr(kernels, f"{name}_{dtype}") for name in ("argmax", "rms_norm", "rotate", "gated", "attention")}
    x, ones = rand(dtype, 5, 8), torch.ones(8)
    wide, x_like = x.double(), rand(dtype, 8, 5).T  # of another dtype, not contiguous
    keys, query = rand(dtype, 3, BLOCK_ROWS, 2, 8), rand(dtype, 2, 4, 8)
    adapter = getattr(kernels, f"Adapter_{dtype}")(taps=1, vectors=[], low_ranks=[])
    detour = getattr(kernels, f"detour_{dtype}")
    linear = getattr(kernels, f"Linear_{dtype}")(rand(dtype, 4, 8))

    def attend(query=query, keys=keys, tables=((1, 2),), sequence=(0, 0), slots=(3, 4)):
        return of["attention"](
            query, keys, keys, [list(table) for table in tables], list(sequence), list(slots), 1.0, 0, 0.0
        )

    attend()
    wrong = [
        lambda: of["argmax"](wide), lambda: of["argmax"](x[0]), lambda: of["argmax"](x[:, :0]),
        lambda: of["rms_norm"](wide, ones, 1e-6), lambda: of["rms_norm"](x, ones[:7], 1e-6),
        lambda: of["rms_norm"](x_like, torch.ones(8), 1e-6),
        lambda: of["rotate"](x, ones, ones), lambda: of["rotate"](x[:, None], torch.ones(5, 10), torch.ones(5, 10)),
        lambda: of["rotate"](x[:, None], torch.ones(4, 8), torch.ones(4, 8)),
        lambda: of["rotate"](x[:, None], torch.ones(5, 8), torch.ones(5, 6)),
        lambda: of["gated"](x, x[:4], "silu"), lambda: of["gated"](wide, wide, "silu"),
        lambda: of["gated"](x_like, x_like, "silu"), lambda: of["gated"](x, x, "mish"),
        lambda: linear(x[:, :6].contiguous()), lambda: linear(wide), lambda: linear(x_like),
        lambda: detour([adapter], [x], 1, [0, 5]), lambda: detour([adapter], [x], 0, [0, 6]),
        lambda: detour([adapter], [x], 0, [5]), lambda: detour([adapter], [x], 0, [-1, 6]),
        lambda: detour([None], [x], 0, [0, 5]), lambda: detour([adapter], [wide], 0, [0, 5]),
        lambda: attend(query[:1]), lambda: attend(query.double()), lambda: attend(keys=keys.double()),
        lambda: attend(keys=keys[:, :8].contiguous()), lambda: attend(keys=keys[..., :4].contiguous()),
        lambda: attend(query[:, :3].contiguous()), lambda: attend(tables=((1, 3),), slots=(3, 20)),
        lambda: attend(tables=((-1,),)), lambda: attend(sequence=(0, 1)), lambda: attend(sequence=(0,)),
        lambda: attend(slots=(3, 40)), lambda: attend(slots=(-1, 4)),
    ]  # fmt: skip
    for i, call in enumerate(wrong):
        with pytest.raises(ValueError):
            print(i, call())


def test_draws_and_scores_of_nothing_are_refused(kernels, dtype):
    logits = rand(dtype, 2, 40)
    sample = getattr(kernels, f"sample_{dtype}")

    def draw(row=0, edits=None, allowed=None):
        return kernels.Draw(row, True, 1.0, 0.0, 0, 1.0, 0, 0, edits, allowed, -1, 40)

    edit = np.array([(3, 0.0, 1.0, 0.0)], EDIT)
    assert sample(logits, [draw(edits=edit, allowed=np.full(2, 2**32 - 1, np.uint32))], [kernels.Score(0, [3], 2)])
    outside = np.array([(40, 0.0, 1.0, 0.0)], EDIT)
    wrong = [
        lambda: sample(logits, [draw(2)], []), lambda: sample(logits, [draw(-1)], []),
        lambda: sample(logits, [draw(edits=outside)], []), lambda: draw(allowed=np.zeros(1, np.uint32)),
        lambda: draw(allowed=np.zeros(2, np.float64)), lambda: draw(edits=edit[None]),
        lambda: sample(logits, [], [kernels.Score(2, [3], 2)]), lambda: sample(logits, [], [kernels.Score(0, [40], 2)]),
        lambda: sample(logits, [], [kernels.Score(0, [-1], 2)]), lambda: sample(logits[:, ::2], [draw()], []),
        lambda: sample(logits.double(), [draw()], []), lambda: sample(logits[0], [draw()], []),
    ]  # fmt: skip
    for call in wrong:
        with pytest.raises(ValueError):
            call()


WHOLE = {
    "heads that don't share evenly": (dict(heads=3), "evenly"),
    "an odd rotation": (dict(rotary=7), "turned"),
    "a size of none": (dict(hidden=0), "above zero"),
}


@pytest.mark.parametrize("wrong", WHOLE)
def test_a_model_of_impossible_sizes_is_refused(kernels, dtype, wrong):
    changes, message = WHOLE[wrong]
    shape = dict(hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=8, rotary=8, epsilon=1e-6, scale=1.0)
    shape |= dict(softcap=0.0, final_softcap=0.0, activation="silu") | changes
    with pytest.raises(ValueError, match=message):
        getattr(kernels, f"Model_{dtype}")(kernels.Shape(**shape))


def test_weights_of_other_sizes_are_refused(kernels, dtype):
    """Every part of a layer in turn, the head and the rotations."""
    shape = dict(hidden=32, intermediate=48, heads=4, kv_heads=2, head_dim=8, rotary=8, epsilon=1e-6, scale=1.0)
    shape |= dict(softcap=0.0, final_softcap=0.0, activation="silu")
    model = getattr(kernels, f"Model_{dtype}")(kernels.Shape(**shape))

    def linear(out, width):
        return rand(dtype, out, width), None

    layer = dict(
        queries=[linear(32, 32), linear(16, 32), linear(16, 32)], attn_out=linear(32, 32),
        mlp_in=[linear(48, 32), linear(48, 32)], mlp_out=linear(32, 48), attn_norm=torch.ones(32), attn_post=None,
        mlp_norm=torch.ones(32), mlp_post=None, query_norm=None, key_norm=None, window=0, rotation=0,
    )  # fmt: skip
    wrong = dict(
        queries=[[linear(32, 32)], [linear(16, 32)] * 2, [linear(16, 32)] * 4, [linear(16, 32), linear(32, 32), linear(16, 32)]],
        attn_out=[linear(30, 32), linear(32, 30)], mlp_in=[[linear(48, 32)], [linear(40, 32), linear(56, 32)], []],
        mlp_out=[linear(32, 46)], attn_norm=[torch.ones(31)], attn_post=[torch.ones(31)], mlp_norm=[torch.ones(1)],
        mlp_post=[torch.ones(33)], query_norm=[torch.ones(32)], key_norm=[torch.ones(7)], window=[-1], rotation=[-1],
    )  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError):
                model.add_layer(**{**layer, name: value})
    with pytest.raises(ValueError, match="the adapter has 23 taps, the model 3"):
        model.require_fits(getattr(kernels, f"Adapter_{dtype}")(taps=23, vectors=[], low_ranks=[]))
    with pytest.raises(ValueError, match="no head or no layers"):
        model.step(rand(dtype, 1, 32), rand(dtype, 1), rand(dtype, 1), [], [], [])
    model.add_layer(**layer)
    for norm, head in ((torch.ones(31), linear(50, 32)), (torch.ones(32), linear(50, 30))):
        with pytest.raises(ValueError):
            model.set_head(norm, head)
    model.set_head(torch.ones(32), linear(50, 32))
    with pytest.raises(ValueError, match="no rotation 0"):
        model.step(rand(dtype, 1, 32), rand(dtype, 1), rand(dtype, 1), [], [], [])
    for cosine, sine in ((torch.ones(9, 6), torch.ones(9, 6)), (torch.ones(9, 8), torch.ones(8, 8))):
        with pytest.raises(ValueError):
            model.set_rotations([(cosine, sine)])


def test_a_base_with_a_head_of_another_dtype_has_no_fast_path(kernels):
    base = tiny_base("mistral")  # its head is not tied to the embedding
    base.model.to(torch.bfloat16)
    base.model.lm_head.to(torch.float32)
    assert obstacle(base) == "lm_head is torch.float32 in a base of torch.bfloat16"
    with pytest.raises(FastPathError, match=r"lm_head is torch\.float32"):
        make_runner("fast", base, KVCache(base.spec, 4, base.dtype, base.device))


def test_the_kernels_block_is_the_caches(kernels):
    assert kernels.BLOCK_ROWS == BLOCK_ROWS


def test_a_wrong_step_of_the_runner_is_refused(call):
    """Through the runner, as the engine would meet it."""
    good = Run(0, list(range(2, 22)), 0, 0, [1, 2], 1)
    for wrong in (replace(good, blocks=[1]), replace(good, position=90), replace(good, blocks=[1, 99])):
        with pytest.raises(ValueError, match=r"lacks blocks|positions|names block"):
            call.runner.run(make_batch([(None, wrong)])[0])
    assert call.runner.run(make_batch([(None, good)])[0]).isfinite().all()
