"""Adapters scored together by an engine in this process."""

from collections.abc import Callable, Sequence

from graft.hub.base.dtype_choice import chosen_dtype
from graft.hub.base.model import load_base
from graft.hub.evaluation.metrics import Metric
from graft.hub.evaluation.task_data import Example
from graft.hub.registry.interface import AnyRegistry
from graft.server.benchmark.dtype_speed import evaluating
from graft.server.commands.scoring.scorekeeping import Entrant
from graft.server.commands.scoring.verification import evaluation_options
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.evaluation.evaluate import Listener, evaluate


class ScorerHere:
    """The base, loaded, and what it is."""

    def __init__(self, folder: str, device: str | None, dtype: str | None, say: Callable[[str], None]):
        """Raises BaseModelError."""
        dtype = dtype or chosen_dtype(folder, device, evaluating(), say)
        self._base = load_base(folder, device=device, dtype=dtype)
        self.spec, self.device = self._base.spec, self._base.device.type
        self.dtype = str(self._base.dtype).removeprefix("torch.")

    def score(
        self,
        registry: AnyRegistry,
        entrants: Sequence[Entrant],
        examples: Sequence[Example],
        metric: Metric,
        listener: Listener,
    ) -> None:
        """`entrants` and the bare base; `listener` is told of each. Raises DataError."""
        with Engine(self._base, shelf=registry, options=evaluation_options()) as engine:
            evaluate(EngineClient(engine), [entrant.model for entrant in entrants], examples, metric, listener)
