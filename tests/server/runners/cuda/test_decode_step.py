"""Static decode steps: equal to steps launched piece by piece, on the same addresses, recorded only when they must be.

On a CPU they are called, in Triton's interpreter; on a GPU test_gpu.py has them recorded.
"""

from functools import partial

import pytest
import torch

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.serving_forms import CacheRows, InputRows, LowRank, Vector, detours
from graft.hub.base.hook_points import Tap
from graft.server.cache.step import BLOCK_ROWS, Run, make_batch
from graft.server.cache.tensors import KVCache

pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
if torch.cuda.is_available():
    pytest.skip("these run in Triton's interpreter; test_gpu.py has the GPU's", allow_module_level=True)
from graft.server.runners.cuda import adapter_table as bank_module
from graft.server.runners.cuda import detours as visits
from graft.server.runners.cuda.adapter_table import AdapterTable
from graft.server.runners.cuda.decode_step import StaticStep
from graft.server.runners.cuda.detours import GroupedStep
from graft.server.runners.cuda.draw_step import Drawer
from graft.server.runners.cuda.graphs import GraphError, call_directly
from graft.server.runners.cuda.kernels.detours import make_tiles
from graft.server.runners.cuda.launches import Layouts
from graft.server.runners.cuda.runner import GroupedRunner
from graft.server.runners.eager.runner import EagerRunner
from graft.server.sampling.history import TokenHistory
from graft.server.sampling.params import GREEDY, Draw, Sampling, Score

KINDS = ("lora", "dora", "houlsby", "pfeiffer", "parallel", "bitfit", "ia3", "prompt", "prefix")
TOLERANCE = dict(atol=1e-4, rtol=1e-4)  # float32, as test_runner.py: the orders of additions differ
PROMPT = 3  # rows of a sequence's prompt


class Recorder:
    """Records as a graph would: what was recorded reads and writes the same memory ever after."""

    def __init__(self):
        self.steps, self.addresses = [], []

    def __call__(self, function):
        step = function.__self__
        self.steps.append(step)
        buffers = [getattr(step.inputs, name) for name in ("ids", "positions", "slots", "firsts", "lengths", "tables")]

        def replay():
            self.addresses.append((step.inputs.rows, *(buffer.data_ptr() for buffer in buffers)))
            return function()

        return replay


class Pair:
    """Two runners of one base with the same cache contents: one decodes in static steps, the other is the eager one, or launches
    piece by piece."""

    def __init__(self, base, record=call_directly, other=EagerRunner):
        self.base, self.position = base, {}
        self.runners = [
            make(base, KVCache(base.spec, 64, base.dtype, base.device))
            for make in (partial(GroupedRunner, record=record), other)
        ]

    def add(self, name, forms):
        for runner in self.runners:
            runner.add(name, runner.prepare(detours(forms)))

    def remove(self, name):
        for runner in self.runners:
            runner.remove(name)

    def start(self, name, owner, count=PROMPT):
        """A prompt of its own for a sequence."""
        self.position[name] = 0
        self.feed({name: owner}, count)

    def feed(self, owners, count=1):
        """`count` rows more of each sequence. owners: sequence -> adapter or None. Returns both runners' logits."""
        wanted = []
        for name, owner in owners.items():
            at = self.position[name]
            tokens = [(7 * (at + i) + 31 * name) % 290 + 2 for i in range(count)]
            wanted.append((owner, Run(0, tokens, at, at, (2 * name + 1, 2 * name + 2), 1)))
            self.position[name] += count
        batch, order = make_batch(wanted)
        logits = [runner.run(batch) for runner in self.runners]
        names = list(owners)
        return [dict(zip([names[i] for i in order], rows, strict=True)) for rows in logits]


def assert_equal(pair, owners):
    static, other = pair.feed(owners)
    for name in owners:
        torch.testing.assert_close(static[name], other[name], **TOLERANCE)
    return static


@pytest.mark.parametrize(
    "family",
    # half a minute a family in Triton's interpreter
    ["gemma2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "gpt2", "gpt_neox"))],
    indirect=True,
)
def test_all_kinds_in_static_steps_say_what_they_say_in_others(base, make_forms):
    """All kinds and the bare base, padded from 10 rows to 16 and from 3 to 4, over evictions and reloads."""
    pair = Pair(base, other=partial(GroupedRunner, record=None))
    names = dict(enumerate([None, *KINDS]))
    for seed, kind in enumerate(KINDS):
        pair.add(kind, make_forms(kind, base, seed))
    for name, kind in names.items():
        pair.start(name, kind)
    assert_equal(pair, names)
    pair.remove("lora")
    pair.remove("ia3")
    assert_equal(pair, {0: None, 2: "dora", 3: "houlsby"})
    pair.add("ia3", make_forms("ia3", base, 20))  # in the slot that the LoRA had, or its own
    pair.add("lora", make_forms("lora-wide", base, 21))
    assert_equal(pair, names)
    assert pair.runners[0].static


def test_static_steps_follow_a_context_over_many_steps(llama, make_forms):
    """Across the end of a block."""
    pair = Pair(llama)
    pair.add("a", make_forms("lora", llama))
    pair.start(1, "a", BLOCK_ROWS - 2)
    pair.start(2, None, BLOCK_ROWS - 2)
    for _ in range(4):
        assert_equal(pair, {1: "a", 2: None})


def test_bare_rows_are_bit_equal_in_a_static_step_with_and_without_adapters(llama, make_forms):
    """The same rows in the same places of a step of the same size, beside rows of adapters and beside bare ones."""
    alone, mixed = Pair(llama), Pair(llama)
    for i, kind in enumerate(KINDS):
        mixed.add(kind, make_forms(kind, llama, i))
    for name in range(3):
        alone.start(name, None)
        mixed.start(name, None)
    bare = alone.feed(dict.fromkeys(range(3)))[0]
    beside = mixed.feed({0: None, 1: "houlsby", 2: "bitfit"})[0]
    assert torch.equal(bare[0], beside[0])
    assert not torch.equal(bare[1], beside[1])


def test_replays_use_the_same_memory_and_recordings_are_made_only_when_they_must_be(llama, make_forms):
    record = Recorder()
    pair = Pair(llama, record)
    for i in range(4):
        pair.add(f"lora{i}", make_forms("lora", llama, i))
    for name in range(4):
        pair.start(name, f"lora{name}" if name else None)
    assert_equal(pair, {0: None, 1: "lora1", 2: "lora2"})
    assert len(record.steps) == 1
    assert_equal(pair, {1: "lora1", 2: "lora2", 3: "lora3"})  # another set of adapters
    pair.remove("lora2")
    pair.add("new", make_forms("lora", llama, 9))  # its matrices elsewhere, its slot the old one's
    assert_equal(pair, {1: "new", 2: "lora1", 3: "lora3"})
    assert_equal(pair, {0: None, 1: "new", 2: "lora0", 3: "lora3"})  # four rows: the same size as three
    assert len(record.steps) == 1
    assert len(set(record.addresses)) == 1
    assert_equal(pair, {0: None})  # one row, and no adapter: another size, without detours
    assert len(record.steps) == 2
    pair.add("ia3", make_forms("ia3", llama))  # resident, but in no step yet
    assert_equal(pair, {0: None, 1: "new", 2: "lora0"})
    assert len(record.steps) == 2
    assert_equal(pair, {0: None, 1: "new", 2: "ia3"})  # places that were not recorded
    assert len(record.steps) == 3
    assert_equal(pair, {0: None, 1: "new", 2: "lora0"})
    assert_equal(pair, {0: None})
    assert len(record.steps) == 3


def test_a_table_that_grows_costs_a_recording_and_nothing_else(llama, make_forms, monkeypatch):
    monkeypatch.setattr(bank_module, "_SLOTS", 2)  # the bare base's and one more
    monkeypatch.setattr(bank_module, "_PLACES", 1)
    record = Recorder()
    pair = Pair(llama, record)
    pair.add("a", make_forms("lora", llama, 1))
    pair.start(0, "a")
    pair.start(1, None)
    assert_equal(pair, {0: "a", 1: None})
    for i, kind in enumerate(("dora", "parallel", "lora")):
        pair.add(kind, make_forms(kind, llama, 2 + i))
    assert_equal(pair, {0: "a", 1: "parallel"})
    assert len(record.steps) == 2


def test_a_step_that_cannot_be_recorded_is_launched_piece_by_piece(llama, make_forms, caplog):
    def refuse(function):
        raise GraphError("Not today.")

    pair = Pair(llama, refuse)
    pair.add("a", make_forms("lora", llama))
    pair.start(0, "a")
    assert_equal(pair, {0: "a"})
    assert not pair.runners[0].static
    assert "Not today." in caplog.text


def test_one_size_that_cannot_be_recorded_leaves_the_others_recorded(llama, make_forms, caplog):
    recorded = []

    def refuse_pairs(function):
        rows = function.__self__.inputs.rows
        if rows == 2:
            raise torch.OutOfMemoryError("Not for two.")
        recorded.append(rows)
        return function

    pair = Pair(llama, refuse_pairs)
    pair.add("a", make_forms("lora", llama))
    for name in range(3):
        pair.start(name, "a" if name else None)
    for owners in ({0: None}, {0: None, 1: "a"}, {0: None, 1: "a", 2: "a"}, {0: None, 1: "a"}, {0: None}):
        assert_equal(pair, owners)
        assert pair.runners[0].static and pair.runners[0].begins_early
    assert recorded == [1, 4]
    assert caplog.text.count("Not for two.") == 1  # it was not tried again at once


@pytest.mark.parametrize("blocks", [8, 100_000])
def test_tables_are_no_longer_than_the_cache_and_the_base_have_blocks(llama, blocks):
    cache = KVCache(llama.spec, blocks, llama.dtype, llama.device)
    tables = StaticStep(llama, cache, None, 4).inputs.tables
    assert len(tables) == 1 + 4 * min(blocks - 1, llama.spec.max_positions // BLOCK_ROWS)


def test_the_longest_context_that_a_cache_has_room_for_fits_into_its_tables(llama):
    """All blocks but the trash block for one sequence, up to its last row."""
    blocks, text = (1, 2, 3), [7 * i % 290 + 2 for i in range(3 * BLOCK_ROWS)]
    runners = [
        GroupedRunner(llama, KVCache(llama.spec, 4, llama.dtype, llama.device), how) for how in (call_directly, None)
    ]
    last = len(text) - 1
    logits = []
    for runner in runners:
        runner.run(make_batch([(None, Run(0, text[:last], 0, 0, blocks, 1))])[0])
        logits.append(runner.run(make_batch([(None, Run(0, text[last:], last, last, blocks, 1))])[0]))
    torch.testing.assert_close(*logits, **TOLERANCE)


def test_what_is_drawn_behind_static_steps_is_what_is_drawn_behind_others(llama):
    """Plain draws are recorded, of every way; edits are not, nor a draw of some rows only; tokens may not be known yet."""
    recorded = []

    def record(function):
        recorded.append(type(function.__self__).__name__)
        return function

    def runner(how):
        return GroupedRunner(
            llama, KVCache(llama.spec, 64, llama.dtype, llama.device), how, Drawer(how) if how else None
        )

    runners = static, _ = runner(record), runner(None)
    edits = TokenHistory(Sampling(logit_bias=((11, 60.0),)), ()).edits
    names, asked = range(3), {
        "plain": [(i, Draw(Sampling(logprobs=2), seed=i, position=1)) for i in range(3)],
        "filtered": [(0, Draw(GREEDY)), (1, Draw(Sampling(top_p=0.5), seed=4)), (2, Draw(Sampling(), seed=5))],
        "greedy": [(i, Draw(GREEDY)) for i in range(3)],
        "edited": [(0, Draw(Sampling(), seed=1, edits=edits)), (1, Draw(GREEDY)), (2, Draw(GREEDY))],
        "some": [(1, Draw(Sampling(), seed=9)), (2, Draw(GREEDY))],
        "first": [(0, Draw(Sampling(), seed=9))],
    }  # fmt: skip
    prompt = make_batch([(None, Run(0, [5 + name, 6, 7], 0, 0, (2 * name + 1, 2 * name + 2), 1)) for name in names])[0]
    for each in runners:
        each.step(prompt, asked["plain"], [])
    for at, (name, draws) in enumerate(asked.items(), start=3):
        known = name in ("edited", "first")  # those before drew fewer tokens, or the test says so
        tokens = [9, 10, 11] if known or name == "some" else [-1, -2, -3]
        batch = make_batch([(None, Run(0, [tokens[i]], at, at, (2 * i + 1, 2 * i + 2), 1)) for i in names])[0]
        got, expected = (each.step(batch, draws, [(0, Score((3,), 2))]) for each in runners)
        assert [token.id for token in got.tokens] == [token.id for token in expected.tokens], name
        for one, other in zip((*got.tokens, *got.scores[0]), (*expected.tokens, *expected.scores[0]), strict=True):
            assert [id for id, _ in one.top] == [id for id, _ in other.top]
            assert (one.logprob is None) == (other.logprob is None)
            assert one.logprob is None or one.logprob == pytest.approx(other.logprob, abs=1e-3)
        if name == "edited":
            assert got.tokens[0].id == 11
    assert recorded == ["StaticStep", "StaticDraw", "StaticDraw", "StaticDraw"]  # "first" is drawn as "plain" was
    assert static.static


def test_prompts_and_prefixes_alone_need_no_detours(llama, make_forms):
    bank = AdapterTable(llama.dtype, llama.device)
    for kind, rows in (("prompt", InputRows), ("prefix", CacheRows)):
        forms = make_forms(kind, llama)
        assert any(isinstance(form, rows) for form in forms)
        bank.add(kind, bank.prepare(detours(forms)))
        assert bank.slot(kind) == 0
    assert Layouts(bank, llama.spec).roomy_plan(["prompt", "prefix"]) is None


# One shrink for projections with one input

NAMES = ("q_proj", "k_proj", "v_proj")


def projections(spec):
    return [f"model.layers.0.self_attn.{name}" for name in NAMES]


def low_rank(draw, reads, adds_to, inputs, outputs):
    A, B = torch.randn(3, inputs, generator=draw), torch.randn(3, outputs, generator=draw)
    return LowRank((reads,), adds_to, A, B)


def launches(spec, adapters, monkeypatch):
    """Visit q, k and v as a forward does, by the grouped step and by the eager one, which must agree.

    Returns how many shrinks were launched.
    """
    counted = []
    plain = visits.low_rank_sums
    monkeypatch.setattr(visits, "low_rank_sums", lambda *args: counted.append(1) or plain(*args))
    device = torch.device("cpu")
    bank = AdapterTable(torch.float32, device)
    names = [str(i) for i in range(len(adapters))]
    for name, forms in zip(names, adapters, strict=True):
        bank.add(name, bank.prepare(forms))
    whose = RowOwners(1, (2,) * len(adapters))
    tiles = make_tiles([(1, 0), *((2, bank.slot(name)) for name in names)], device)
    steps = [
        GroupedStep(Layouts(bank, spec).exact_plan(names), tiles, tiles, "lm_head"),
        Step(Stack(adapters, torch.float32, device), whose, lm_head="lm_head"),
    ]
    x = torch.randn(whose.total, 32, generator=torch.Generator().manual_seed(1))
    for name, out in zip(projections(spec), (32, 16, 16), strict=True):
        inputs = [step.visit(Tap(name, "in"), x) if Tap(name, "in") in step.taps else x for step in steps]
        torch.testing.assert_close(*inputs, **TOLERANCE)
        outputs = [step.visit(Tap(name, "out"), value[:, :out]) for step, value in zip(steps, inputs, strict=True)]
        torch.testing.assert_close(*outputs, **TOLERANCE)
    return len(counted)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def loras(llama, draw):
    """One adapter on q, k and v, one on k alone."""
    sizes = zip(projections(llama.spec), (32, 16, 16), strict=True)
    every = [low_rank(draw, Tap(name, "in"), Tap(name, "out"), 32, out) for name, out in sizes]
    return [every, every[1:2]]


def test_projections_with_one_input_share_a_shrink(llama, loras, monkeypatch):
    assert launches(llama.spec, loras, monkeypatch) == 1


def test_a_vector_on_one_input_keeps_it_apart(llama, loras, draw, monkeypatch):
    q, k, _ = projections(llama.spec)
    vector = Vector(Tap(k, "in"), torch.rand(32, generator=draw))
    assert launches(llama.spec, [loras[0], [*loras[1], vector]], monkeypatch) == 2
    monkeypatch.undo()
    vector = Vector(Tap(q, "in"), torch.rand(32, generator=draw))
    assert launches(llama.spec, [loras[0], [*loras[1], vector]], monkeypatch) == 2


def test_a_detour_on_one_input_keeps_it_apart(llama, loras, draw, monkeypatch):
    """It reads the tap before its own change, the projection's detour after it: a third shrink."""
    q, *_ = projections(llama.spec)
    own = low_rank(draw, Tap(q, "in"), Tap(q, "in"), 32, 32)
    assert launches(llama.spec, [[*loras[0], own], loras[1]], monkeypatch) == 3
