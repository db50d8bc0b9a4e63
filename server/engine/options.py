"""An engine's sizes: what the caller sets, and what follows from the machine where nothing is set."""

from dataclasses import dataclass

import torch

from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.hub.machine.free_memory import free_memory
from graft.server.cache.step import BLOCK_ROWS, blocks_for
from graft.server.cache.tensors import block_bytes
from graft.server.engine.scheduler import guest_places
from graft.server.runners.factory import runner_bytes, static_step_bytes
from graft.server.runners.step_memory import step_bytes

GIB = 1 << 30
# Rows for prompts in a step, beside as many as run: where the machine is quick (operations/step_pace.py), and where it is slow.
_MOST_ROWS = {"cpu": 1024, "cuda": 4096}
_LEAST_ROWS = 64
_CACHE_SHARE = {"cpu": 0.15, "cuda": 0.6}  # of free memory
_CACHE_MOST = {"cpu": 4 * GIB, "cuda": 512 * GIB}


@dataclass(frozen=True)
class Options:
    """None: chosen by the machine (see `Sizes`)."""

    max_running: int = 64  # sequences in a step; beyond them one in eight for clients that run nothing (scheduler.py)
    step_rows: int | None = None  # most rows in a step. None: by their time (operations/step_pace.py)
    cache_bytes: int | None = None
    host_bytes: int | None = None  # adapters in host memory
    device_bytes: int | None = None  # adapters in the runner
    max_model_len: int | None = None  # virtual tokens, prompt and new tokens of one sequence
    prefix_sharing: bool = True
    runner: str = "auto"  # "auto" | "fast" | "eager"
    allow_base_mismatch: bool = False


@dataclass(frozen=True)
class Sizes:
    """Options with every figure decided."""

    step_rows: int  # most in a step
    least_rows: int  # that a step may have: no fewer, where it is slow
    blocks: int
    host_bytes: int
    device_bytes: int
    max_model_len: int
    cache_bytes: int

    @property
    def cache_tokens(self) -> int:
        """For so many the cache has room, those of adapters included."""
        return self.blocks * BLOCK_ROWS


def sizes(options: Options, base: Base) -> Sizes:
    """Raises GraftError for sizes that can't work, or that don't fit into what memory is free."""
    kind = base.device.type
    per_block = block_bytes(base.spec, base.dtype)
    longest = options.max_model_len or base.spec.max_positions
    if longest > base.spec.max_positions:
        raise GraftError(
            f"--max-model-len {longest} is more than the {base.spec.max_positions} positions this base was made for."
        )
    places = options.max_running + guest_places(options.max_running, options.step_rows)
    step_rows = options.step_rows or places + _MOST_ROWS[kind]
    if step_rows < options.max_running:
        raise GraftError(f"A step of {step_rows} rows is too small for {options.max_running} running requests.")
    most_blocks = blocks_for(base.spec.max_positions)  # of one sequence
    if options.cache_bytes:
        most_blocks = min(most_blocks, options.cache_bytes // per_block)
    taken = {
        "the base's packed weights": runner_bytes(options.runner, base),
        f"a step of {step_rows} rows": step_bytes(base.spec, base.dtype.itemsize, step_rows),
        "recorded steps": static_step_bytes(options.runner, base, places, most_blocks),
    }
    device, host = _free(options, base.device, taken)
    wanted = options.cache_bytes or min(int(device * _CACHE_SHARE[kind]), _CACHE_MOST[kind])
    enough = places * blocks_for(longest) * 4 // 3 + 2  # all requests at full length
    blocks = min(wanted // per_block, enough)
    if blocks < 8:
        raise GraftError(f"The KV cache needs at least {8 * per_block} bytes for 8 blocks (--kv-bytes).")
    return Sizes(
        step_rows=step_rows,
        least_rows=options.step_rows or places + _LEAST_ROWS,
        blocks=blocks,
        host_bytes=options.host_bytes or host // 4,
        device_bytes=options.device_bytes or device // 8,
        max_model_len=longest,
        cache_bytes=blocks * per_block,
    )


def require_budgets(options: Options, device: str) -> None:
    """Before a base is loaded: raises GraftError where the budgets that are set are more than is free now."""
    _free(options, torch.device(device), {})


def _free(options: Options, device: torch.device, taken: dict[str, int]) -> tuple[int, int]:
    """What is free on the device and in host memory (on a CPU: both the same) beside the budgets that are set and what is `taken` on
    the device, by its name. Raises GraftError where those don't fit."""
    host = free_memory()
    on_device = {"--kv-bytes": options.cache_bytes, "--adapter-device-bytes": options.device_bytes}
    on_host = {"--adapter-host-bytes": options.host_bytes}
    if device.type == "cuda":
        left = _left(torch.cuda.mem_get_info(device)[0], on_device, taken, str(device))
        return left, _left(host, on_host, {}, "this machine")
    left = _left(host, on_device | on_host, taken, "this machine")
    return left, left


def _left(free: int, budgets: dict[str, int | None], taken: dict[str, int], where: str) -> int:
    """Raises GraftError, with all figures, where the budgets and what is taken are more than is free."""
    given = {flag: size for flag, size in budgets.items() if size}
    parts = {name: size for name, size in (given | taken).items() if size}
    left = free - sum(parts.values())
    if left >= 0:
        return left
    advice = (
        "Give less."
        if given
        else "Take a smaller base or dtype, a lower --max-batch-rows, or --runner eager, which packs nothing."
    )
    figures = " and ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    raise GraftError(f"{figures} don't fit into the {_gib(free)} of memory that are free on {where}. {advice}")


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
