"""Adapters of a registry as vLLM takes them: a name becomes the folder of one version, whose digest is in all that vLLM keeps by.

vLLM keeps keys and values by an adapter's name and path, and compares adapters by name alone. So both have the digest in
them, and no two answers the same name. Knows no vLLM (vllm_plugin.py).
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from graft.hub.adapters.methods import METHODS
from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.adapters.validation import CONFIG, inspect_artifact, read_json
from graft.hub.base.manifest import BaseSpec, recorded_spec
from graft.hub.errors import BaseMismatchError, RepoNotFoundError, UnsupportedMethodError
from graft.hub.registry.base_models import downloaded_id
from graft.hub.registry.interface import AnyRegistry
from graft.hub.registry.naming import REPO_NAME
from graft.hub.registry.queries import Revision

_LORA = "lora"
# Of a PEFT config for LoRA: values that leave it to what vLLM computes, and what other values make of it.
_PLAIN: dict[str, tuple[tuple[object, ...], str]] = {
    "use_dora": ((None, False), "a DoRA"),
    "lora_bias": ((None, False), "a LoRA with trained biases of its own"),
    "bias": ((None, "none"), "a LoRA that replaces the base's biases"),
    "modules_to_save": ((None, []), "a LoRA that replaces whole modules"),
}


@dataclass(frozen=True)
class Found:
    """One answer: what vLLM is to call the adapter, and where its files are."""

    name: str
    folder: Path


class VllmAdapters:
    """Looks names up. Safe for many threads. `open_registry` is called with the first name; `cache` gets a folder a digest."""

    def __init__(self, open_registry: Callable[[], AnyRegistry], cache: Path):
        self._open_registry, self._cache = open_registry, cache
        self._answers = count(1)

    def find(self, base: str, name: str) -> Found | None:
        """The adapter that `name` (ns/name, ns/name@rev, task:T) stands for now, on vLLM's `base`; None for one of somebody
        else's. `base`: a folder or a hub id.

        Raises UnsupportedMethodError for a kind that vLLM can't take, BaseMismatchError for one of another base, and the
        registry's GraftErrors.
        """
        if not _is_ours(name):
            return None
        spec = recorded_spec(base)
        try:
            revision = self._registry.resolve(name, base=spec.fingerprint if spec else None)
        except RepoNotFoundError:
            return None
        if revision.method not in (None, _LORA):
            raise _unsupported(name, METHODS[revision.method].title if revision.method in METHODS else revision.method)
        _require_base(name, revision, base, spec)
        folder = self._fetch(revision)
        _require_plain_lora(name, folder)
        return Found(f"{name}:{folder.name}:{next(self._answers)}", folder)

    @cached_property
    def _registry(self) -> AnyRegistry:
        return self._open_registry()

    def _fetch(self, revision: Revision) -> Path:
        """The folder of a version's digest: whole, checked, and the same for ever."""
        if revision.digest is not None and (kept := self._cache / revision.digest).is_dir():
            return kept
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incoming-", dir=self._cache) as work:
            pulled = Path(work) / "adapter"
            self._registry.pull(f"{revision.repo}@{revision.id}", pulled)
            kept = self._cache / inspect_artifact(pulled, None).digest
            try:
                pulled.rename(kept)
            except OSError:
                if not kept.is_dir():  # another process was quicker
                    raise
        return kept


def _is_ours(name: str) -> bool:
    namespace, slash, rest = name.partition("/")
    repo = rest.partition("@")[0]
    return name.startswith(TASK_PREFIX) or bool(slash and REPO_NAME.fullmatch(namespace) and REPO_NAME.fullmatch(repo))


def _require_base(name: str, revision: Revision, base: str, spec: BaseSpec | None) -> None:
    """Raises BaseMismatchError unless vLLM serves the base that the adapter was trained on."""
    trained = revision.base_id or (revision.base_fingerprint or "a base that it doesn't name")[:12]
    if spec is not None and revision.base_fingerprint is not None:
        if spec.fingerprint != revision.base_fingerprint:
            raise BaseMismatchError(
                f"{name} was trained on {trained}, and vLLM serves another base ({spec.id or base})."
            )
        return
    served = spec.id if spec else downloaded_id(base) or base
    if served != revision.base_id:
        raise BaseMismatchError(
            f"{name} was trained on {trained}, and vLLM serves {base}, which isn't known to be the same: start it with the "
            f"base's id, or with a folder that `graft base import` made."
        )


def _require_plain_lora(name: str, folder: Path) -> None:
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise _unsupported(name, "not written as PEFT writes a LoRA")
    for field, (plain, kind) in _PLAIN.items():
        if config.get(field) not in plain:
            raise _unsupported(name, kind)


def _unsupported(name: str, kind: str) -> UnsupportedMethodError:
    return UnsupportedMethodError(
        f"{name} is {kind}, and vLLM computes plain LoRA alone: serve it with `graft serve`, which mixes all kinds."
    )
