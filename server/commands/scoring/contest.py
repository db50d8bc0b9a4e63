"""What is scored, and by whom: an engine here, or a cluster. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from graft.hub.base.manifest import BaseSpec
from graft.hub.evaluation.metrics import Metric
from graft.hub.evaluation.task_data import Example
from graft.hub.registry.interface import AnyRegistry

if TYPE_CHECKING:
    from graft.server.evaluation.evaluate import Listener


@dataclass(frozen=True)
class Entrant:
    """An adapter to be scored, pinned to the revision it stands for now."""

    repo: str
    revision: str
    digest: str | None

    @property
    def model(self) -> str:
        return f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Contest:
    """Adapters of a registry, and the bare base, on the same examples."""

    registry: AnyRegistry
    entrants: Sequence[Entrant]
    examples: Sequence[Example]
    metric: Metric


@dataclass(frozen=True)
class BaseAsked:
    """A base, and what a user wants of how it is loaded: None is for the machine to choose."""

    folder: str
    device: str | None
    dtype: str | None


class Scorer(Protocol):
    """Who has found the base, and what it is."""

    spec: BaseSpec
    device: str  # cpu or cuda
    dtype: str

    def score(self, contest: Contest, listener: "Listener") -> None:
        """All of a contest; `listener` is told of each, of the bare base first. Raises GraftError where nothing can be scored."""
