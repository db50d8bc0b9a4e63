"""Which runner a base gets on this machine."""

import logging

from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.server.cache.tensors import KVCache
from graft.server.runners.eager.runner import EagerRunner
from graft.server.runners.protocol import FastPathError, Runner

log = logging.getLogger(__name__)
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


def runner_bytes(name: str, base: Base) -> int:
    """What the runner of that name will take beside the base, its cache and adapters: the weights that it packs."""
    if name == "eager" or base.device.type != "cpu":
        return 0
    from graft.server.runners.cpu.base_memory import extra_bytes
    from graft.server.runners.cpu.weights import obstacle

    return 0 if obstacle(base) else extra_bytes(base)


def static_step_bytes(name: str, base: Base, rows: int, blocks: int) -> int:
    """What the runner of that name will keep for recorded steps of up to so many rows, each with so many blocks at most."""
    if name == "eager" or base.device.type != "cuda":
        return 0
    from graft.server.runners.cuda.static_sizes import static_bytes

    return static_bytes(rows, blocks, base.spec.vocab_size, base.dtype.itemsize)


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
