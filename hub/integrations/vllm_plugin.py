"""What vLLM loads by its entry point `vllm.general_plugins`: `vllm serve` takes adapters of a hub or registry by name.

$GRAFT_HUB is a hub's URL, $GRAFT_REGISTRY a registry's file; without either nothing is done. Loaded in every process of
vLLM's, whether or not anybody asks for an adapter, so what takes time is imported when there is something to do.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from graft.hub.errors import GraftError

if TYPE_CHECKING:
    from graft.hub.integrations.vllm_adapters import VllmAdapters
    from graft.hub.registry.interface import AnyRegistry

log = logging.getLogger(__name__)

HUB, REGISTRY, ALLOWED = "GRAFT_HUB", "GRAFT_REGISTRY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
LoraRequest = TypeVar("LoraRequest")  # vLLM's own class
_NUMBER = 1  # vLLM gives each its own


def register() -> None:
    """Have vLLM ask us for adapters that it doesn't know. Ends the process, with the reason, where the settings can't be right."""
    hub, registry = os.environ.get(HUB), os.environ.get(REGISTRY)
    if not hub and not registry:
        return
    if hub and registry:
        raise SystemExit(
            f"error: ${HUB} and ${REGISTRY} are both set: adapters come from one place. Unset one of them."
        )
    if registry and not Path(registry).is_file():
        raise SystemExit(f"error: ${REGISTRY} names {registry}, and there is no such file.")
    if os.environ.get(ALLOWED, "").strip().lower() not in ("1", "true"):
        log.warning("vLLM looks no adapter up by name unless %s=1 is set.", ALLOWED)

    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolverRegistry

    from graft.hub.integrations.vllm_adapters import VllmAdapters
    from graft.hub.machine.cache_folder import cache_folder

    adapters = VllmAdapters(lambda: _open(hub, registry), cache_folder() / "vllm")
    LoRAResolverRegistry.register_resolver("graft", Resolver(adapters, LoRARequest, _refusal))


class Resolver(Generic[LoraRequest]):
    """A vLLM LoRAResolver. `make`: vLLM's request from a name, a number and a path; `refusal`: what tells its client an error."""

    def __init__(
        self,
        adapters: "VllmAdapters",
        make: Callable[[str, int, str], LoraRequest],
        refusal: Callable[[GraftError], Exception],
    ):
        self._adapters, self._make, self._refusal = adapters, make, refusal

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoraRequest | None:
        """The request for the version that a name stands for now, None for a name that isn't ours."""
        try:
            found = await asyncio.to_thread(self._adapters.find, base_model_name, lora_name)
        except GraftError as error:
            log.warning("%s: %s", lora_name, error)
            raise self._refusal(error) from error
        return None if found is None else self._make(found.name, _NUMBER, str(found.folder))


def _open(hub: str | None, registry: str | None) -> "AnyRegistry":
    from graft.hub.registry.registry import Registry
    from graft.hub.registry.remote.client import RemoteRegistry

    return RemoteRegistry(hub) if hub else Registry(Path(registry or ""), create=False)


def _refusal(error: GraftError) -> Exception:
    from fastapi import HTTPException  # vLLM's web framework, which writes it as an OpenAI error

    return HTTPException(error.status, str(error))
