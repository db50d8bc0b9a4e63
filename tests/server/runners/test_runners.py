"""Every runner against the packed reference: mixed equals alone, chunked equals whole, slot 0 untouched."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.packed_attention import PackedAttention, cache_rows
from graft.hub.adapters.serving_forms import CacheRows, InputRows, detours
from graft.hub.base.model import Base
from graft.server.cache.step import BLOCK_ROWS, Run, make_batch
from graft.server.cache.tensors import KVCache
from graft.server.runners.cpu.build import load
from graft.server.runners.cpu.weights import obstacle
from graft.server.runners.factory import make_runner
from tests.conftest import FAMILIES

KINDS = ("lora", "lora-wide", "dora", "houlsby", "pfeiffer", "parallel", "bitfit", "ia3", "prompt", "prefix", "ptuning")

TOLERANCE = dict(atol=1e-4, rtol=1e-4)  # float32; random adapters make large logits


def reference(base, forms, tokens):
    """Logits [T, V] of one sequence run whole, alone, through the packed context. tokens: list of ids."""
    stack = Stack([detours(forms)], base.dtype, base.device)

    def step(rows):
        return Step(stack, RowOwners(0, (rows,)), lm_head=base.spec.parts.lm_head)

    prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
    prompt = next((form for form in forms if isinstance(form, InputRows)), None)
    if prompt is not None:
        prefix = cache_rows(base, prompt.rows, step(len(prompt.rows)))
    start = prefix.text_start if prefix else 0
    positions = torch.arange(start, start + len(tokens))
    attention = PackedAttention([len(tokens)], [prefix], base.device)
    with torch.no_grad():
        return base.forward(base.embed(torch.tensor(tokens)), positions, attention, step(len(tokens)))


def runner(kind, base, blocks):
    """The runner `kind` of a base on a CPU ("fast-2": with two threads); "grouped" is the GPU's, on a GPU if there is one,
    else interpreted."""
    kind, _, threads = kind.partition("-")
    torch.set_num_threads(int(threads or 1))
    if kind == "fast" and (obstacle(base) or load() is None):
        pytest.skip(f"no fast path: {obstacle(base) or 'no compiler'}")
    if kind != "grouped":
        return make_runner(kind, base, KVCache(base.spec, blocks, base.dtype, base.device))
    pytest.importorskip("triton", reason="Triton is not installed: there is none for this platform")
    from graft.server.runners.cuda.runner import grouped_runner

    if torch.cuda.is_available():
        base = Base(copy.deepcopy(base.model).to("cuda"), base.tokenizer, base.spec.id)
    return grouped_runner(base, KVCache(base.spec, blocks, base.dtype, base.device))


class Sequences:
    """A few sequences fed to a runner in whatever pieces a test wants."""

    def __init__(self, kind, base, blocks=64):
        self.runner = runner(kind, base, blocks)
        self.free = iter(range(1, blocks))
        self.start, self.text_start, self.blocks, self.digest, self.rows = {}, {}, {}, {}, {}

    def add(self, name, forms, length):
        """Reserve room for a sequence of `length` tokens after its adapter's virtual rows."""
        self.digest[name] = name if forms else None
        if forms:
            self.runner.add(name, self.runner.prepare(detours(forms)))
        rows = next((form for form in forms if isinstance(form, (CacheRows, InputRows))), None)
        count = 0 if rows is None else (rows.keys.shape[1] if isinstance(rows, CacheRows) else len(rows.rows))
        self.blocks[name] = [next(self.free) for _ in range(-(-(count + length) // BLOCK_ROWS))]
        self.start[name] = count
        self.text_start[name] = rows.text_start if isinstance(rows, CacheRows) else count
        if isinstance(rows, CacheRows):
            self.runner.cache.write(rows, self.blocks[name])
        self.rows[name] = rows.rows if isinstance(rows, InputRows) else None

    def virtual(self):
        """Run all soft prompts once, in one step."""
        self.step(
            [
                (self.digest[n], Run(0, (), 0, 0, self.blocks[n], 0, rows))
                for n, rows in self.rows.items()
                if rows is not None
            ]
        )

    def feed(self, pieces):
        """pieces: name -> (all tokens, how many were fed before). Returns name -> logits of the new rows."""
        wanted = [
            (
                self.digest[name],
                Run(
                    0,
                    tokens[fed:],
                    self.start[name] + fed,
                    self.text_start[name] + fed,
                    self.blocks[name],
                    len(tokens) - fed,
                ),
            )
            for name, (tokens, fed) in pieces.items()
        ]
        names, logits, order, batch = list(pieces), *self.step(wanted)
        split = logits.split([run.logits for run in batch.runs])
        return {names[i]: part for i, part in zip(order, split, strict=True)}

    def step(self, wanted):
        batch, order = make_batch(wanted)
        return self.runner.run(batch).cpu(), order, batch


KINDS_OF_RUNNER = ("eager", "fast-1", "fast-2", "fast-3", "grouped")


@pytest.fixture(params=KINDS_OF_RUNNER)
def kind(request):
    yield request.param
    torch.set_num_threads(1)


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(7)
    lengths = [3, 24, 9, 17, 40, 6, 12, 31, 5, 20, 11, 15]
    return [torch.randint(2, 300, (n,), generator=generator).tolist() for n in lengths]


def test_threads_without_a_core_change_no_bit(llama, make_forms, texts):
    """More threads than cores: some miss whole phases of a step, and what they missed they must not do again."""
    steps = [[0, 1, 2, 3], [4], list(range(8)), [5, 6], list(range(12))] * 8

    def logits():
        sequences = Sequences(f"fast-{torch.get_num_threads()}", llama, blocks=128)
        for i in range(len(texts)):
            sequences.add(str(i), make_forms("lora", llama, i), len(texts[i]))
        return [sequences.feed({str(i): (texts[i], 0) for i in step}) for step in steps]

    alone = logits()
    with ThreadPoolExecutor(1, initializer=lambda: torch.set_num_threads(3 * os.cpu_count() + 1)) as pool:
        crowded = pool.submit(logits).result()
        pool.submit(torch.set_num_threads, 1).result()  # it is also about threads to come
    for ours, theirs in zip(alone, crowded, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, family) for kind in KINDS_OF_RUNNER[:-1] for family in FAMILIES),
        # seconds a family in Triton's interpreter: two of them show every kind of tap
        *(
            pytest.param("grouped", family, marks=() if family in ("gemma2", "gpt_neox") else pytest.mark.slow)
            for family in FAMILIES
        ),
    ],
    indirect=True,
)
def test_mixed_batch_equals_each_alone(kind, base, make_forms, texts):
    """All kinds at once, prompts cut in chunks of unlike size, then decoding, on every family."""
    owners = {"base": ()} | {method: make_forms(method, base, i) for i, method in enumerate(KINDS)}
    tokens = dict(zip(owners, texts, strict=True))
    sequences = Sequences(kind, base, blocks=128)
    for name, forms in owners.items():
        sequences.add(name, forms, len(tokens[name]))
    sequences.virtual()
    got = {name: [] for name in owners}
    fed = dict.fromkeys(owners, 0)
    for round in range(100):
        # a third of the sequences prefill, the others decode
        pieces = {}
        for i, name in enumerate(owners):
            size = 7 if (i + round) % 3 == 0 else 1
            if fed[name] < len(tokens[name]):
                pieces[name] = (tokens[name][: fed[name] + size], fed[name])
        if not pieces:
            break
        for name, logits in sequences.feed(pieces).items():
            got[name].append(logits)
            fed[name] += len(logits)
    for name, forms in owners.items():
        torch.testing.assert_close(torch.cat(got[name]), reference(base, forms, tokens[name]), **TOLERANCE)


def test_bare_rows_are_bit_equal_with_and_without_adapters_resident(kind, llama, make_forms, texts):
    """Slot 0: the same batch shape gives the same bits, whoever is loaded."""
    alone, beside = Sequences(kind, llama), Sequences(kind, llama)
    alone.add("base", (), 40)
    beside.add("base", (), 40)
    for i, method in enumerate(KINDS):
        beside.runner.add(method, beside.runner.prepare(detours(make_forms(method, llama, i))))
    pieces = {"base": (texts[4], 0)}
    assert torch.equal(alone.feed(pieces)["base"], beside.feed(pieces)["base"])


def test_bare_rows_are_bit_equal_beside_other_owners_rows(kind, llama, make_forms, texts):
    """The same rows in the same places: a neighbour's adapter changes no bit of the bare base's rows."""
    plain, mixed = Sequences(kind, llama), Sequences(kind, llama)
    plain.add("base", (), 40)
    plain.add("other", (), 40)
    mixed.add("base", (), 40)
    mixed.add("other", make_forms("lora", llama), 40)
    pieces = {"base": (texts[4], 0), "other": (texts[7], 0)}
    assert torch.equal(plain.feed(pieces)["base"], mixed.feed(pieces)["base"])


def test_a_run_reads_blocks_that_another_run_fills_in_the_same_step(kind, llama, texts):
    sequences = Sequences(kind, llama)
    sequences.add("base", (), 40)
    blocks, text = sequences.blocks["base"], texts[4]
    first = Run(0, text[:32], 0, 0, blocks, 0)
    second = Run(0, text[32:], 32, 32, [*blocks[:2], 60], len(text) - 32)
    logits, _, _ = sequences.step([(None, first), (None, second)])
    torch.testing.assert_close(logits, reference(llama, (), text)[32:], **TOLERANCE)


def test_a_copied_block_serves_as_the_original(kind, llama, texts):
    sequences = Sequences(kind, llama)
    sequences.add("base", (), 16)
    text = texts[3]
    sequences.feed({"base": (text[:10], 0)})
    batch, _ = make_batch([(None, Run(0, text[10:16], 10, 10, [50], 6))], copies=[(sequences.blocks["base"][0], 50)])
    torch.testing.assert_close(sequences.runner.run(batch).cpu(), reference(llama, (), text[:16])[10:], **TOLERANCE)


def test_a_step_without_logits_returns_none(kind, llama, make_forms, texts):
    sequences = Sequences(kind, llama)
    sequences.add("a", make_forms("lora", llama), 40)
    logits, _, _ = sequences.step([("a", Run(0, texts[4], 0, 0, sequences.blocks["a"], 0))])
    assert logits.shape == (0, 300)
