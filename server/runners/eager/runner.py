"""What carries out a step. `Runner` is the interface; `EagerRunner` is the generic path, and the reference.

The eager runner drives transformers' own model classes through `Base.forward`, with the step's adapters stacked
side by side; it serves every family on every device. server/fast/ replaces it, or its detours, where a faster path
exists and is tested equal to it. Knows steps and adapters' forms; no requests, no scheduling.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from graft.hub.adapters.batched_apply import Rows, Stack, Step
from graft.hub.adapters.serving_forms import Form, LowRank, Vector
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.server.cache.step import Batch
from graft.server.cache.tensors import KVCache
from graft.server.runners.eager.attention import PagedAttention

log = logging.getLogger(__name__)
_KEPT_STACKS = 4


class FastPathError(GraftError):
    """There is no fast path for this base on this machine."""


class Prepared(Protocol):
    """An adapter's detours in the shape a runner wants them, on its device."""

    bytes: int


class Runner(Protocol):
    """Owns a base, a KV cache and the detours of the resident adapters."""

    cache: KVCache
    meets_often: bool  # its threads wait for each other after every operator, so that one without a core holds all up

    def prepare(self, forms: Sequence[Form]) -> Prepared:
        """Detours (LowRank, Vector) as `add` takes them. Called by the loader's thread while steps run."""
        ...

    def add(self, digest: str, prepared: Any) -> None:
        """Make an adapter resident under its digest. Cheap: called by the engine's thread between steps."""
        ...

    def remove(self, digest: str) -> None:
        """Forget a resident adapter and free its memory."""
        ...

    def run(self, batch: Batch) -> Tensor:
        """Carry out a step (batch.py says what is owed). Returns logits [n, V] in the order of the wanted rows."""
        ...

    def argmax(self, logits: Tensor) -> Tensor:
        """[n, V] -> [n]: where each row's largest value is, the first of equals; a NaN's place where there is one."""
        ...


@dataclass(frozen=True)
class _Detours:
    forms: tuple[Form, ...]
    bytes: int


class EagerRunner:
    """The reference: eager torch, any family, any device."""

    meets_often = True

    def __init__(self, base: Base, cache: KVCache):
        self.cache = cache
        self._base = base
        self._adapters: dict[str, _Detours] = {}
        self._stacks: OrderedDict[tuple[str, ...], Stack] = OrderedDict()

    def prepare(self, forms: Sequence[Form]) -> _Detours:
        ready = tuple(at(form, self._base.dtype, self._base.device) for form in forms)
        return _Detours(ready, sum(form_bytes(form) for form in ready))

    def add(self, digest: str, prepared: _Detours) -> None:
        self._adapters[digest] = prepared

    def remove(self, digest: str) -> None:
        del self._adapters[digest]
        for active in [active for active in self._stacks if digest in active]:
            del self._stacks[active]

    @torch.inference_mode()
    def run(self, batch: Batch) -> Tensor:
        self.cache.copy(batch.copies)
        rows, positions, wanted = packed_rows(batch, self._base)
        attention = PagedAttention(batch, self.cache)
        return self._base.forward(rows, positions, attention, self._step(batch), wanted)

    def argmax(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def _step(self, batch: Batch) -> Step | None:
        """Whose rows are whose; None where no active adapter has a detour, so that the base runs untouched."""
        if not batch.adapters:
            return None
        active, stack = self._stack(batch.adapters)
        if not stack.taps:
            return None
        place = {digest: i for i, digest in enumerate(batch.adapters, start=1)}
        rows, logits = (
            Rows(lengths[0], tuple(lengths[place[digest]] if digest in place else 0 for digest in active))
            for lengths in (batch.lengths, batch.logit_lengths)
        )
        return Step(stack, rows, lm_head=self._base.spec.parts.lm_head, logit_rows=logits)

    def _stack(self, wanted: tuple[str, ...]) -> tuple[tuple[str, ...], Stack]:
        """A stack that holds the wanted adapters, and whose they are: a recent one, where it is not much too large."""
        for active in reversed(self._stacks):
            if len(active) <= 2 * len(wanted) and set(wanted) <= set(active):
                self._stacks.move_to_end(active)
                return active, self._stacks[active]
        stack = Stack([self._adapters[d].forms for d in wanted], self._base.dtype, self._base.device)
        self._stacks[wanted] = stack
        if len(self._stacks) > _KEPT_STACKS:
            self._stacks.popitem(last=False)
        return wanted, stack


def packed_rows(batch: Batch, base: Base) -> tuple[Tensor, Tensor, Tensor]:
    """A step's embedded rows [T, H], positions [T], indices of the rows that want logits [n]."""
    positions: list[int] = []
    wanted: list[int] = []
    pieces: list[Tensor] = []
    pending: list[int] = []
    for run in batch.runs:
        positions.extend(range(run.position, run.position + run.length))
        wanted.extend(range(len(positions) - run.logits, len(positions)))
        if run.virtual is None:
            pending.extend(run.tokens)
            continue
        pieces += [_embedded(pending, base), run.virtual.to(base.device, base.dtype)]
        pending = []
    pieces.append(_embedded(pending, base))
    rows = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return rows, torch.tensor(positions, device=base.device), torch.tensor(wanted, dtype=torch.long, device=base.device)


def _embedded(tokens: list[int], base: Base) -> Tensor:
    return base.embed(torch.tensor(tokens, dtype=torch.long, device=base.device))


RUNNERS = ("auto", "fast", "eager")


def make_runner(name: str, base: Base, cache: KVCache) -> Runner:
    """`name`: one of RUNNERS; "auto" is the fast one where this base and machine have it.

    Raises GraftError for an unknown name, or where "fast" is asked for and there is none.
    """
    if name not in RUNNERS:
        raise GraftError(f"Unknown runner {name!r}. Known: {', '.join(RUNNERS)}.")
    if name != "eager":
        try:
            return _fast_runner(base, cache)
        except FastPathError as reason:
            if name == "fast":
                raise
            log.info("Serving on the generic path. %s", reason)
    return EagerRunner(base, cache)


def _fast_runner(base: Base, cache: KVCache) -> Runner:
    """The fast runner for the base's device. May compile, the first time. Raises FastPathError."""
    if base.device.type != "cuda":
        from graft.server.runners.cpu.runner import fast_runner

        return fast_runner(base, cache)
    try:
        from graft.server.runners.cuda.runner import grouped_runner
    except ImportError as error:
        raise FastPathError(f"Triton, which the GPU's kernels need, can't be imported: {error}.") from error
    return grouped_runner(base, cache)


def form_bytes(form: Form) -> int:
    """Bytes of a form's tensors."""
    return sum(value.nbytes for value in _tensors(form).values())


def detours(forms: Sequence[Form]) -> tuple[Form, ...]:
    """The forms a runner takes: those at taps, not the rows in the cache."""
    return tuple(form for form in forms if isinstance(form, (LowRank, Vector)))


def at(form: Form, dtype: torch.dtype, device: torch.device | str, *, copy: bool = False) -> Form:
    """The form with its tensors moved and cast; `copy`: into memory of their own even where nothing changes."""
    return replace(form, **{name: value.to(device, dtype, copy=copy) for name, value in _tensors(form).items()})


def _tensors(form: Form) -> dict[str, Tensor]:
    values = {field.name: getattr(form, field.name) for field in fields(form)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
