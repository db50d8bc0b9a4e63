"""What `graft serve` finds out before it loads a base, and says once it has: what is wrong, and what it serves with how much room."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from graft.hub.adapters.validation import inspect_artifact
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import GraftError

if TYPE_CHECKING:
    from graft.hub.registry.interface import AnyRegistry
    from graft.server.engine.engine import Engine

MiB = 1 << 20
DEFAULT_REGISTRY = Path("registry.db")
_MOST_NAMED = 10


def prove_folders(adapters: Mapping[str, Path], spec: BaseSpec | None) -> None:
    """Raises GraftError for a folder that holds no adapter, or, where the base is known, none of it. Their effect is proven when
    they are loaded."""
    for name, folder in adapters.items():
        try:
            inspect_artifact(folder, spec)
        except GraftError as error:
            raise type(error)(f"--adapter {name}: {error}") from None


def summary(engine: "Engine", adapters: Mapping[str, Path], shelf: str | None, max_requests: int) -> list[str]:
    """Lines: the base and its runner, the room that there is, the adapters that can be asked for."""
    spec, sizes, base = engine.base.spec, engine.sizes, engine.base
    named = ", ".join(sorted(adapters)[:_MOST_NAMED]) + (", ..." if len(adapters) > _MOST_NAMED else "")
    known = [*([f"{len(adapters)} by name ({named})"] if adapters else []), *([f"those of {shelf}"] if shelf else [])]
    return [
        f"{spec.parameters:,} parameters, {str(base.dtype).removeprefix('torch.')} on {base.device}, "
        f"{engine.runner_kind}",
        f"room for {sizes.cache_tokens:,} tokens ({sizes.cache_bytes / MiB:,.0f} MiB), {sizes.max_model_len:,} of them a sequence; adapters: "
        f"{sizes.host_bytes / MiB:,.0f} MiB in memory, {sizes.device_bytes / MiB:,.0f} MiB on the device; "
        f"{engine.options.max_running} sequences a step, {max_requests} requests at once",
        f"adapters: {' and '.join(known) or 'none but those that clients load'}",
    ]


def open_shelf(registry_path: Path | None, hub_url: str | None) -> "AnyRegistry | None":
    """Raises NotFoundError for a registry that was asked for and isn't there."""
    if registry_path is None and hub_url is None:
        return None
    from graft.hub.terminal.options import open_registry

    return open_registry(registry_path or DEFAULT_REGISTRY, hub_url)
