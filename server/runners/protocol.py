"""What carries out a step: the interface that every runner keeps. Knows steps and adapters' forms; no requests, no scheduling."""

from collections.abc import Callable, Sequence
from typing import Protocol

from graft.hub.adapters.serving_forms import Form
from graft.hub.errors import GraftError
from graft.server.cache.step import Batch
from graft.server.cache.tensors import KVCache
from graft.server.sampling.params import Draw, Score, StepResult


def no_wait() -> None:
    """All masks are there."""


class FastPathError(GraftError):
    """There is no fast path for this base on this machine."""


class Prepared(Protocol):
    """An adapter's detours in the shape a runner wants them, on its device. `bytes`: all that it takes there because of them."""

    @property
    def bytes(self) -> int: ...


class Runner(Protocol):
    """Owns a base, a KV cache and the detours of the resident adapters."""

    cache: KVCache
    meets_often: bool  # its threads wait for each other after every operator, so that one without a core holds all up

    @property
    def begins_early(self) -> bool:
        """Whether `begin` takes a step while the one before it is under way."""
        ...

    @property
    def adapters(self) -> frozenset[str]:
        """Digests of the resident adapters."""
        ...

    def size(self, forms: Sequence[Form]) -> int:
        """The `bytes` of what `prepare` will make of them, as far as can be said before."""
        ...

    def prepare(self, forms: Sequence[Form]) -> Prepared:
        """Detours (LowRank, Vector) as `add` takes them. Called by the loader's thread while steps run."""
        ...

    def add(self, digest: str, prepared: Prepared) -> None:
        """Make an adapter that this very runner has prepared resident under its digest. Cheap: called by the engine's thread between steps."""
        ...

    def remove(self, digest: str) -> None:
        """Forget a resident adapter and free its memory."""
        ...

    def begin(
        self,
        batch: Batch,
        draws: Sequence[tuple[int, Draw]],
        scores: Sequence[tuple[int, Score]],
        ready: Callable[[], None] = no_wait,
    ) -> Callable[[], StepResult]:
        """Carry out a step (cache/step.py says what is owed), draw its tokens and report log-probabilities: when the result
        is asked for at the latest.

        `draws`, `scores`: (place among the rows that want logits, what is asked of it), no place twice in `draws`.
        `ready` is called once the logits are computed or under way, and waits for the masks (`Draw.allowed`) of the draws.
        A step begun while another is under way may have tokens below 0: -1 - i stands for what that one's i-th draw gives.
        """
        ...
