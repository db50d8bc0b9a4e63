"""Adapters scored together by an engine in this process."""

from collections.abc import Callable

from graft.server.commands.scoring.contest import BaseAsked, Contest
from graft.server.commands.scoring.machinery import EVALUATING, load_asked
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.evaluation.evaluate import Listener, evaluate


class ScorerHere:
    """A Scorer that has loaded the base."""

    def __init__(self, asked: BaseAsked, say: Callable[[str], None]):
        """Raises BaseModelError."""
        self._base = load_asked(asked, say)
        self.spec, self.device, self.dtype = self._base.spec, self._base.device.type, self._base.dtype_name

    def score(self, contest: Contest, listener: Listener) -> None:
        models = [entrant.model for entrant in contest.entrants]
        with Engine(self._base, shelf=contest.registry, options=EVALUATING) as engine:
            evaluate(EngineClient(engine), models, contest.examples, contest.metric, listener)
