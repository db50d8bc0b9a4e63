"""An engine's sizes: what the caller sets, and what follows from the machine where nothing is set."""

from dataclasses import dataclass

import psutil
import torch

from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.server.cache.step import BLOCK_ROWS
from graft.server.cache.tensors import block_bytes

GIB = 1 << 30
_STEP_ROWS = {"cpu": 512, "cuda": 4096}
_CACHE_SHARE = {"cpu": 0.15, "cuda": 0.6}  # of free memory
_CACHE_MOST = {"cpu": 4 * GIB, "cuda": 512 * GIB}


@dataclass(frozen=True)
class Options:
    """None: chosen by the machine (see `Sizes`)."""

    max_running: int = 64  # sequences in a step
    step_rows: int | None = None  # rows in a step, which bounds how long a prompt can hold up others' tokens
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

    step_rows: int
    blocks: int
    host_bytes: int
    device_bytes: int
    max_model_len: int


def sizes(options: Options, base: Base) -> Sizes:
    """Raises GraftError for sizes that can't work."""
    kind = base.device.type
    free = torch.cuda.mem_get_info(base.device)[0] if kind == "cuda" else psutil.virtual_memory().available
    per_block = block_bytes(base.spec, base.dtype)
    longest = options.max_model_len or base.spec.max_positions
    if longest > base.spec.max_positions:
        raise GraftError(
            f"--max-model-len {longest} is more than the {base.spec.max_positions} positions this base was made for."
        )
    step_rows = options.step_rows or _STEP_ROWS[kind]
    if step_rows < options.max_running:
        raise GraftError(f"A step of {step_rows} rows is too small for {options.max_running} running requests.")
    wanted = options.cache_bytes or min(int(free * _CACHE_SHARE[kind]), _CACHE_MOST[kind])
    enough = options.max_running * -(-longest // BLOCK_ROWS) * 4 // 3 + 2  # all requests at full length
    blocks = min(wanted // per_block, enough)
    if blocks < 8:
        raise GraftError(f"The KV cache needs at least {8 * per_block} bytes for 8 blocks (--kv-bytes).")
    return Sizes(
        step_rows=step_rows,
        blocks=blocks,
        host_bytes=options.host_bytes or free // 4,
        device_bytes=options.device_bytes or free // 8,
        max_model_len=longest,
    )
