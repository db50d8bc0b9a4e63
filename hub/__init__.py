"""What an adapter is, and where adapters live. Importing it is cheap: torch comes with `load_artifact` only."""

from typing import TYPE_CHECKING, Any

from graft.hub.machine.openmp_wait import wait_briefly
from graft.hub.registry.registry import Registry

if TYPE_CHECKING:
    from graft.hub.adapters.artifact import load_artifact

__all__ = ["Registry", "load_artifact"]

wait_briefly()


def __getattr__(name: str) -> Any:
    if name == "load_artifact":
        from graft.hub.adapters.artifact import load_artifact

        return load_artifact
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
