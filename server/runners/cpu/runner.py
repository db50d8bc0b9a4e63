"""The fast runner: one call into the C++ kernels a step, for the Llama-like families on a CPU.

Each adapter is packed by itself when it is prepared; a step only names the ones that take part. What the kernels
can't do (a detour at a tap they don't pass) is the eager runner's: the rows of such an adapter take the generic path
in the same step, everyone else's stay on the fast one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from graft.hub.adapters.serving_forms import Form, LowRank, Vector, form_bytes
from graft.hub.base.hook_points import Tap
from graft.hub.base.model import Base
from graft.server.cache.step import BLOCK_ROWS, TRASH_BLOCK, Batch, Run
from graft.server.cache.tensors import KVCache
from graft.server.runners.cpu import weights
from graft.server.runners.cpu.base_memory import releaser
from graft.server.runners.cpu.build import load
from graft.server.runners.cpu.sampler import sample
from graft.server.runners.cpu.taps import TapPlace, count, places
from graft.server.runners.eager.hidden import Outputs, with_sums
from graft.server.runners.eager.runner import EagerDetours, EagerRunner
from graft.server.runners.protocol import FastPathError, Prepared, no_wait
from graft.server.sampling.params import Draw, Score, StepResult

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # relative, of all logits of one step


@dataclass(frozen=True)
class PackedDetours:
    """An adapter as the kernels hold it, or, where they can't, as the eager runner does."""

    adapter: Prepared | None  # kernels.Adapter_DTYPE, None where `eager` is set
    eager: EagerDetours | None
    bytes: int


def fast_runner(base: Base, cache: KVCache) -> "FastRunner":
    """The fast runner of a base, checked against the eager one. Builds the kernels the first time.

    Weights that can be read again are given back as they are packed (base_memory.py). Raises FastPathError, saying why, where
    this base or this machine has none.
    """
    reason = weights.obstacle(base)
    if reason:
        raise FastPathError(f"The CPU kernels can't run this base: {reason}.")
    kernels = load()
    if kernels is None:
        raise FastPathError("There are no CPU kernels on this machine (the log says why).")
    question = _question(base)
    expected = EagerRunner(base, cache).run(question)
    runner = FastRunner(base, cache, kernels, releaser(base))
    kernels.give_back()
    try:
        _require_same(runner.run(question), expected)
    except FastPathError:
        base.restore()
        raise
    return runner


def _question(base: Base) -> Batch:
    """One short step, in the trash block."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(base.spec.vocab_size, (BLOCK_ROWS,), generator=draw).tolist()
    return Batch((Run(0, tokens, 0, 0, [TRASH_BLOCK], BLOCK_ROWS),))


def _require_same(got: Tensor, expected: Tensor) -> None:
    error = float((got.float() - expected.float()).norm() / expected.float().norm())
    if not error <= _TOLERANCE[expected.dtype]:
        raise FastPathError(
            f"The CPU kernels disagree with transformers on this base (relative error {error:.1g} of its logits): "
            f"its config has an option that server/runners/cpu/weights.py does not read."
        )


class FastRunner:
    """A `Runner` (server/runners/eager/runner.py) for a base without `weights.obstacle`."""

    begins_early = False
    meets_often = False  # csrc/team.h

    def __init__(
        self, base: Base, cache: KVCache, kernels: ModuleType, packed: Callable[[str], None] = lambda name: None
    ):
        """`packed` is told of each linear that the kernels hold now (weights.pack_model)."""
        self.cache = cache
        self._base = base
        self._kernels = kernels
        self._eager = EagerRunner(base, cache)
        self._dtype = base.dtype  # kept: a model looks through its parameters for it
        self._places = places(base.spec)
        self._adapters: dict[str, PackedDetours] = {}
        positions = min(base.spec.max_positions, cache.keys.shape[1] * BLOCK_ROWS)
        self._model = weights.pack_model(kernels, base, positions, packed)

    @property
    def adapters(self) -> frozenset[str]:
        return frozenset(self._adapters)

    def size(self, forms: Sequence[Form]) -> int:
        return sum(form_bytes(form) for form in forms) if self._takes(forms) else self._eager.size(forms)

    def _takes(self, forms: Sequence[Form]) -> bool:
        return all(_fits(form, self._places) for form in forms)

    def prepare(self, forms: Sequence[Form]) -> PackedDetours:
        if not self._takes(forms):
            self._base.restore()  # here, where no step waits for it
            eager = self._eager.prepare(forms)
            return PackedDetours(None, eager, eager.bytes)
        adapter: Prepared = getattr(self._kernels, f"Adapter_{str(self._dtype).removeprefix('torch.')}")(
            taps=count(self._base.spec),
            vectors=[self._vector(form) for form in forms if isinstance(form, Vector)],
            low_ranks=[self._low_rank(form) for form in forms if isinstance(form, LowRank)],
        )
        self._model.require_fits(adapter)
        return PackedDetours(adapter, None, adapter.bytes)

    def add(self, digest: str, prepared: Prepared) -> None:
        assert isinstance(prepared, PackedDetours)
        self._adapters[digest] = prepared
        if prepared.eager is not None:
            self._eager.add(digest, prepared.eager)

    def remove(self, digest: str) -> None:
        if self._adapters.pop(digest).eager is not None:
            self._eager.remove(digest)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        """Logits [n, V] of the wanted rows."""
        return self.outputs(batch).logits

    @torch.inference_mode()
    def outputs(self, batch: Batch) -> Outputs:
        self.cache.copy(batch.copies)
        others = {i for i, digest in enumerate(batch.adapters, start=1) if self._adapters[digest].adapter is None}
        if not others:
            return self._run(batch)
        return self._run_apart(batch, others)

    def begin(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> Callable[[], StepResult]:
        return partial(self.step, batch, draws, scores, ready)

    @torch.inference_mode()
    def step(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> StepResult:
        outputs = self.outputs(batch)
        ready()
        return with_sums(sample(self._kernels, outputs.logits, draws, scores), batch, outputs)

    def _run(self, batch: Batch) -> Outputs:
        runs = [
            self._kernels.Run(run.owner, run.length, run.start, run.position, run.logits, run.hidden)
            for run in batch.runs
        ]
        logits, hidden = self._model.step(
            self._rows(batch.runs),
            self.cache.keys,
            self.cache.values,
            runs,
            [run.blocks for run in batch.runs],
            [self._adapters[digest].adapter for digest in batch.adapters],
        )
        return Outputs(logits, hidden if len(hidden) else None)

    def _run_apart(self, batch: Batch, others: set[int]) -> Outputs:
        """Owners never read each other's blocks, so those of `others` can run by themselves."""
        logits: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        for owners, run in ((others, self._eager.outputs), (set(range(len(batch.adapters) + 1)) - others, self._run)):
            part = _select_owners(batch, sorted(owners))
            if part.runs:
                made, number = run(part), _renumber(sorted(owners))
                logits |= _by_old_owner(made.logits, part.logit_lengths, number)
                if made.hidden is not None:
                    hidden |= _by_old_owner(made.hidden, part.hidden_lengths, number)
        return Outputs(_in_order(logits), _in_order(hidden) if hidden else None)

    def _rows(self, runs: Sequence[Run]) -> Tensor:
        """Embedded rows [T, H]."""
        ids = [token for run in runs for token in (run.tokens if run.virtual is None else [0] * run.length)]
        rows = self._base.embed(torch.tensor(ids, dtype=torch.long))
        start = 0
        for run in runs:
            if run.virtual is not None:
                rows[start : start + run.length] = run.virtual.to(rows.dtype)
            start += run.length
        return rows

    def _vector(self, form: Vector) -> object:
        return self._kernels.Vector(tap=self._places[form.tap].number, scale=form.scale, bias=form.bias)

    def _low_rank(self, form: LowRank) -> object:
        return self._kernels.LowRank(
            tap=self._places[form.adds_to].number,
            reads=[self._places[tap].index for tap in form.reads],
            A=form.A.to(self._dtype),
            B=_scale(form.B, form.scale).to(self._dtype),
            a=form.a,
            b=None if form.b is None else _scale(form.b, form.scale),
            activation=form.activation,
        )


def _scale(value: Tensor, scale: float | Tensor) -> Tensor:
    return value if scale == 1.0 else value * scale  # the loader has multiplied it in already


def _fits(form: Form, known: dict[Tap, TapPlace]) -> bool:
    """Whether the kernels pass all taps of a form in the order it needs."""
    if isinstance(form, Vector):
        return form.tap in known and known[form.tap].changeable
    if not isinstance(form, LowRank) or not all(tap in known for tap in (form.adds_to, *form.reads)):
        return False
    target = known[form.adds_to]
    return target.changeable and all(
        known[tap].layer == target.layer and known[tap].index <= target.index for tap in form.reads
    )


def _renumber(owners: Sequence[int]) -> dict[int, int]:
    """Owner in a batch -> owner in the part that holds only `owners`; the bare base stays 0."""
    return {owner: (i if 0 in owners else i + 1) if owner else 0 for i, owner in enumerate(owners)}


def _by_old_owner(rows: Tensor, lengths: Sequence[int], number: dict[int, int]) -> dict[int, Tensor]:
    """The rows of a part by owner in the whole batch. `lengths`: by owner in the part."""
    split = rows.split(list(lengths))
    return {old: split[new] for old, new in number.items()}


def _in_order(pieces: dict[int, Tensor]) -> Tensor:
    return torch.cat([pieces[owner] for owner in sorted(pieces)])


def _select_owners(batch: Batch, owners: Sequence[int]) -> Batch:
    """The part of a batch whose rows are those of `owners`. Its copies are done already."""
    number = _renumber(owners)
    runs = tuple(replace(run, owner=number[run.owner]) for run in batch.runs if run.owner in number)
    return Batch(runs, tuple(batch.adapters[owner - 1] for owner in owners if owner))
