"""The GPU's runner: transformers' own modules, with Triton's kernels for adapters and decode attention, and CUDA graphs.

Adapters lie in a table (adapter_table.py) and are visited tap by tap (detours.py). Steps that only decode are static
(decode_step.py), as is drawing behind them (draw_step.py), and replayed as graphs; the others are launched piece by
piece. Each stage is checked when an engine starts, against the one before it on the same device, and where it fails
the log says why and the one before it serves.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from subprocess import SubprocessError

import torch
from torch import Tensor
from triton.errors import TritonError

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.serving_forms import Form, LowRank, Vector, form_bytes
from graft.hub.base.hook_points import Tap
from graft.hub.base.model import Base
from graft.server.cache.step import TRASH_BLOCK, Batch, Run
from graft.server.cache.tensors import KVCache
from graft.server.runners.cuda.adapter_table import AdapterTable, PackedAdapter
from graft.server.runners.cuda.decode_step import Decoder
from graft.server.runners.cuda.detours import GroupedStep
from graft.server.runners.cuda.draw_step import Drawer
from graft.server.runners.cuda.fused_norms import fuse_norms
from graft.server.runners.cuda.graphs import Graphs, call_directly, relative_error
from graft.server.runners.cuda.kernels.attention import attend_rows
from graft.server.runners.cuda.kernels.detours import make_tiles
from graft.server.runners.cuda.launches import Layouts
from graft.server.runners.cuda.recordings import Record
from graft.server.runners.eager.attention import PagedAttention
from graft.server.runners.eager.hidden import Outputs, run_forward, with_sums
from graft.server.runners.eager.runner import EagerRunner, pack_rows
from graft.server.runners.protocol import FastPathError, Prepared, no_wait
from graft.server.sampling.params import GREEDY, Draw, Sampling, Score, StepResult
from graft.server.sampling.torch_sampler import PlainDraws, TorchSampler, plain_draws

log = logging.getLogger(__name__)

# Relative errors: of the kernels alone, on a step's rows, and of the logits behind all layers, whose roundings add up.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
_LOGITS_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
_FAILURES = (TritonError, RuntimeError, OSError, SubprocessError)  # Triton calls a C compiler


class GroupedRunner:
    """A `Runner` (server/runners/eager/runner.py) for every family on a GPU. `record`: how static steps are made; None: there are none.
    `drawer`: draws behind them; None: nothing is drawn but launch by launch."""

    meets_often = False

    def __init__(self, base: Base, cache: KVCache, record: Record | None, drawer: Drawer | None = None):
        self.cache = cache
        self._base = base
        self._bank = AdapterTable(base.dtype, base.device)
        self._layouts = Layouts(self._bank, base.spec)
        self._decoder = Decoder(base, cache, self._bank, self._layouts, record) if record else None
        self._drawer = drawer
        self._drawn = torch.zeros(0, dtype=torch.int64, device=base.device)  # by the latest step

    @property
    def static(self) -> bool:
        """Whether steps that only decode are static ones, but for shapes that can't be recorded at present; not where none can."""
        return self._decoder is not None and self._decoder.working

    @property
    def begins_early(self) -> bool:
        """Static steps take tokens that are not known yet from where they are drawn."""
        return self.static

    @property
    def adapters(self) -> frozenset[str]:
        return self._bank.digests

    def size(self, forms: Sequence[Form]) -> int:
        return sum(form_bytes(form) for form in forms)

    def prepare(self, forms: Sequence[Form]) -> PackedAdapter:
        return self._bank.prepare(forms)

    def add(self, digest: str, prepared: Prepared) -> None:
        assert isinstance(prepared, PackedAdapter)
        self._bank.add(digest, prepared)

    def remove(self, digest: str) -> None:
        self._bank.remove(digest)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Logits [n, V] of the wanted rows."""
        return self.outputs(batch).logits

    @torch.inference_mode()
    def outputs(self, batch: Batch, plain: PlainDraws | None = None) -> Outputs:
        """`plain`: what is drawn at once where the step is static; the outputs' logits then hold until the next step."""
        self.cache.copy(batch.copies)
        return self._static_outputs(batch, plain) or self._piecewise_outputs(self._awaited(batch))

    def _static_outputs(self, batch: Batch, plain: PlainDraws | None) -> Outputs | None:
        """None for a step that is not static."""
        if self._decoder is None or not self._decoder.takes(batch):
            return None
        padded = self._decoder.run(batch, self._drawn)
        if padded is None:
            return None
        outputs = self._drawer.run(padded, plain) if self._drawer and plain else None
        return outputs or Outputs(padded[: len(batch.runs)].clone())  # the next replay writes to the same memory

    def _piecewise_outputs(self, batch: Batch) -> Outputs:
        rows, positions, wanted = pack_rows(batch, self._base)
        attention = PagedAttention(batch, self.cache, GroupedSingles)
        return run_forward(self._base, batch, rows, positions, attention, self._step(batch), wanted)

    @torch.inference_mode()
    def begin(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> Callable[[], StepResult]:
        sampler = TorchSampler(draws, scores, self._base.device)  # before the step: its data travel while that runs
        outputs = self.outputs(batch, sampler.plain)
        ready()
        drawn_and_scored = sampler.begin(outputs.logits, outputs.drawn)
        self._drawn = sampler.drawn
        return lambda: with_sums(drawn_and_scored(), batch, outputs)

    def step(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> StepResult:
        """Begin a step and wait for it."""
        return self.begin(batch, draws, scores, ready)()

    def _awaited(self, batch: Batch) -> Batch:
        """The step with its tokens, where some are not known yet: waits for the step that draws them."""
        if all(id >= 0 for run in batch.runs for id in run.tokens):
            return batch
        drawn = self._drawn.tolist()
        runs = (replace(run, tokens=[id if id >= 0 else drawn[-1 - id] for id in run.tokens]) for run in batch.runs)
        return replace(batch, runs=tuple(runs))

    def _step(self, batch: Batch) -> GroupedStep | None:
        """None where no adapter of the step has a detour, so that the base runs untouched."""
        layout = self._layouts.exact_plan(batch.adapters)
        if layout is None:
            return None
        slots = (0, *(self._bank.slot(digest) for digest in batch.adapters))
        tiles, head_tiles = (
            make_tiles([*zip(lengths, slots, strict=True)], self._base.device)
            for lengths in (batch.lengths, batch.logit_lengths)
        )
        return GroupedStep(layout, tiles, head_tiles, self._base.spec.parts.lm_head)


class GroupedSingles:
    """The runs of one row in a step that has others too (paged.SingleRows)."""

    def __init__(self, rows: Tensor, tables: Tensor, last: Tensor, device: torch.device):
        self.rows = rows.to(device)
        self._tables = tables.flatten().to(device)
        self._firsts = (torch.arange(len(tables)) * tables.shape[1]).to(device)
        self._lengths = (last + 1).to(device)

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        return attend_rows(
            query, keys, values, self._tables, self._firsts, self._lengths,
            scaling=scaling, window=window, softcap=softcap,
        )  # fmt: skip


def grouped_runner(base: Base, cache: KVCache) -> GroupedRunner:
    """The GPU's runner of a base, its kernels compiled and checked; with CUDA graphs where they can be had.

    Raises FastPathError, saying why, where the kernels fail. Called before `cache` holds anything.
    """
    if base.dtype not in _TOLERANCE:
        raise FastPathError(f"The GPU's kernels don't know the dtype {base.dtype}.")
    try:
        _refuse(disagreement(base), _TOLERANCE[base.dtype], base)
        plain = _trial(EagerRunner(base, cache), base)
        fuse_norms(base.model)
        piecewise = _trial(GroupedRunner(base, cache, None), base)
        _refuse(relative_error(piecewise, plain), _LOGITS_TOLERANCE[base.dtype], base)
    except _FAILURES as failure:
        raise FastPathError(f"Triton's kernels don't run on {base.device}: {failure}") from failure
    record = _recording(base, cache, piecewise)
    return GroupedRunner(base, cache, record, _drawer(base, record) if record else None)


def _refuse(error: float, tolerance: float, base: Base) -> None:
    if not error <= tolerance:
        raise FastPathError(f"Triton's kernels disagree with torch on {base.device} (relative error {error:.1g}).")


def _recording(base: Base, cache: KVCache, piecewise: Tensor) -> Record | None:
    """How a base's static steps are made; None where they are not what the steps launched piece by piece are."""
    tolerance = _LOGITS_TOLERANCE[base.dtype]
    record = Graphs(base.device, tolerance).record if base.device.type == "cuda" else call_directly
    runner = GroupedRunner(base, cache, record)
    try:
        error = relative_error(_trial(runner, base), piecewise)
    except _FAILURES as failure:
        log.warning("Decoding without CUDA graphs: static steps fail on %s. %s", base.device, failure)
        return None
    if not error <= tolerance:
        log.warning("Decoding without CUDA graphs: static steps disagree with others (relative error %.1g).", error)
        return None
    if not runner.static:
        log.warning("Decoding without CUDA graphs: none can be recorded on %s.", base.device)
        return None
    return record


@torch.inference_mode()
def _drawer(base: Base, record: Record) -> Drawer | None:
    """Recorded draws; None where one of every way can't be recorded."""
    drawer, draw = Drawer(record), torch.Generator().manual_seed(0)
    logits = torch.randn(2, base.spec.vocab_size, generator=draw).to(base.device, base.dtype)
    for sampling in (GREEDY, Sampling(), Sampling(top_p=0.9)):
        plain = plain_draws([(0, Draw(sampling, seed=1)), (1, Draw(sampling, seed=2))])
        if plain is None or drawer.run(logits, plain) is None:
            log.warning("Drawing without CUDA graphs: draws can't be recorded on %s.", base.device)
            return None
    return drawer


def _trial(runner: GroupedRunner | EagerRunner, base: Base) -> Tensor:
    """Logits [6, V] of an adapter's prompt and one decoding step after it, in the trash block."""
    runner.add("trial", runner.prepare(_trial_forms(base)))
    tokens = [id % base.spec.vocab_size for id in (5, 17, 90, 33, 64, 12)]
    steps = [Run(1, tokens[:5], 0, 0, (TRASH_BLOCK,), 5), Run(1, tokens[5:], 5, 5, (TRASH_BLOCK,), 1)]
    return torch.cat([runner.run(Batch((run,), ("trial",))) for run in steps])


def _trial_forms(base: Base) -> list[Form]:
    """A detour of every kind in the first layer: at each linear, after its attention, and on its first norm."""
    spec, parts = base.spec, base.spec.parts
    draw = torch.Generator().manual_seed(0)

    def low_rank(reads: Tap, adds_to: Tap, inputs: int, outputs: int, activation: str) -> LowRank:
        A = torch.randn(4, inputs, generator=draw) / inputs**0.5
        B = torch.randn(4, outputs, generator=draw) * 0.1
        return LowRank((reads,), adds_to, A, B, activation=activation)

    linears = {name: spec.modules[name] for name in (spec.module(0, part) for part in parts.linears)}
    forms: list[Form] = [
        low_rank(Tap(name, "in"), Tap(name, "out"), linear.in_features, linear.out_features, "none")
        for name, linear in linears.items()
    ]
    added, norm = Tap(spec.module(0, parts.attn_out), "out"), Tap(spec.module(0, parts.attn_norm), "out")
    width = linears[added.module].out_features
    vector = 1 + 0.1 * torch.randn(width, generator=draw)
    return [*forms, low_rank(added, added, width, width, "gelu_new"), Vector(norm, vector, vector)]


def disagreement(base: Base) -> float:
    """The relative error of the kernels' result on random rows as wide as the base's, decoding and prefill, biases and all."""
    draw = torch.Generator().manual_seed(0)
    width = base.spec.hidden_size
    read, changed = Tap("", "in"), Tap("", "out")

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    def forms(rank: int, activation: str) -> list[Form]:
        A, B = random(rank, width) / width**0.5, random(rank, width) / rank**0.5
        return [
            LowRank((read,), changed, A, B, random(rank), random(width), activation),
            Vector(changed, random(width), random(width)),
        ]

    adapters = [forms(8, "none"), [], forms(40, "gelu_new")]
    bank = AdapterTable(base.dtype, base.device)
    names = [str(i) for i in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        bank.add(name, bank.prepare(adapter))
    layout = Layouts(bank, base.spec).exact_plan(names)
    assert layout is not None  # two of them have detours
    stack = Stack(adapters, base.dtype, base.device)
    errors = []
    for whose in (RowOwners(3, (1, 2, 5)), RowOwners(3, (1, 2, 100))):
        rows, x = (random(whose.total, width).to(base.device, base.dtype) for _ in range(2))
        slots = (0, *(bank.slot(name) for name in names))
        tiles = make_tiles([*zip((whose.bare, *whose.lengths), slots, strict=True)], base.device)
        expected, got = (
            _visit(step, read, x, changed, rows)
            for step in (Step(stack, whose, lm_head="head"), GroupedStep(layout, tiles, tiles, "head"))
        )
        errors.append(float((got - expected).float().norm() / expected.float().norm()))
    return float(torch.tensor(errors).max())  # a NaN counts


def _visit(step: Step | GroupedStep, read: Tap, x: Tensor, changed: Tap, rows: Tensor) -> Tensor:
    step.visit(read, x)
    return step.visit(changed, rows)
