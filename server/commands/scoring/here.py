"""Adapters scored together by an engine in this process."""

from collections.abc import Callable

from graft.hub.base.dtype_choice import chosen_dtype
from graft.hub.base.model import Base, load_base
from graft.server.benchmark.dtype_speed import evaluating
from graft.server.commands.scoring.contest import BaseAsked, Contest
from graft.server.commands.scoring.verification import evaluation_options
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.evaluation.evaluate import Listener, evaluate


def load_asked(asked: BaseAsked, say: Callable[[str], None]) -> Base:
    """Raises BaseModelError."""
    dtype = asked.dtype or chosen_dtype(asked.folder, asked.device, evaluating(), say)
    return load_base(asked.folder, device=asked.device, dtype=dtype)


class ScorerHere:
    """A Scorer that has loaded the base."""

    def __init__(self, asked: BaseAsked, say: Callable[[str], None]):
        """Raises BaseModelError."""
        self._base = load_asked(asked, say)
        self.spec, self.device, self.dtype = self._base.spec, self._base.device.type, self._base.dtype_name

    def score(self, contest: Contest, listener: Listener) -> None:
        models = [entrant.model for entrant in contest.entrants]
        with Engine(self._base, shelf=contest.registry, options=evaluation_options()) as engine:
            evaluate(EngineClient(engine), models, contest.examples, contest.metric, listener)
