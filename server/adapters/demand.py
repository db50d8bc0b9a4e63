"""Who wants an adapter on the device."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from graft.server.adapters.loaded import Loaded


@dataclass(eq=False)
class Demand:
    """Requests for one adapter that the scheduler has."""

    loaded: Loaded
    waiting: int = 0
    running: int = 0
    turns: dict[Hashable, None] = field(default_factory=dict)  # clients whose turn has come, until one of them starts
    seekers: list["Seeker"] = field(default_factory=list)


@dataclass(eq=False)
class Seeker:
    """A client whose turn has come and whose adapter finds no room."""

    client: Hashable
    digest: str
    since: float
