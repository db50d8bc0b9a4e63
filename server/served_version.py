"""What a request runs on, as it is told to clients and counted in metrics."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """What a request runs on. `digest` and the rest are None for the bare base."""

    name: str | None = None
    digest: str | None = None
    revision: str | None = None
