"""What an adapter is, and where adapters live. Importing it is cheap: torch comes with `load_artifact` only."""

from typing import TYPE_CHECKING, Any

from graft.hub.registry import Registry
from graft.hub.threads import wait_briefly

if TYPE_CHECKING:
    from graft.hub.artifact import load_artifact

__all__ = ["Registry", "load_artifact"]

wait_briefly()


def __getattr__(name: str) -> Any:
    if name == "load_artifact":
        from graft.hub.artifact import load_artifact

        return load_artifact
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
