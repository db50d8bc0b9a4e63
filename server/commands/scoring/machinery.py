"""What an evaluation runs on: the base as it was asked for, and how its engine is set."""

from collections.abc import Callable

from graft.hub.base.dtype_choice import chosen_dtype
from graft.hub.base.model import Base, load_base
from graft.server.benchmark.dtype_speed import evaluating
from graft.server.commands.scoring.contest import BaseAsked
from graft.server.engine.options import Options

EVALUATING = Options(step_rows=2048, max_running=256)  # nobody waits for a next token: large steps are quickest


def load_asked(asked: BaseAsked, say: Callable[[str], None]) -> Base:
    """Raises BaseModelError."""
    dtype = asked.dtype or chosen_dtype(asked.folder, asked.device, evaluating(), say)
    return load_base(asked.folder, device=asked.device, dtype=dtype)
