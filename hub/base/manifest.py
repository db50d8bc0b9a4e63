"""What is known of a base without loading it: identity, sizes, and every module an adapter may touch.

A `BaseSpec` is a base's manifest. It travels as JSON (beside the weights, in the registry's `bases` table)
and lets the hub check an artifact's tensor names and shapes without torch.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from graft.hub.base.architectures import Parts, family_parts
from graft.hub.errors import BaseModelError

ADAPTER_CONFIG = "adapter_config.json"
MODULE_KINDS = frozenset(("linear", "norm", "embedding"))
MAX_SIZE = 1 << 50  # of anything that is counted in a manifest
RECORD = "graft-base.json"  # the manifest beside the weights, left by `graft base import`
_STRICT = {"extra": "forbid", "strict": True}  # how pydantic reads a stranger's: no other fields, no other types
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class ModuleSpec:
    """One module: a linear ([in_features] -> [out_features]) or a norm (in = out)."""

    __pydantic_config__ = _STRICT

    kind: str  # "linear" | "norm" | "embedding"
    in_features: int
    out_features: int
    bias: bool


@dataclass(frozen=True)
class BaseSpec:
    """The manifest of a frozen base."""

    __pydantic_config__ = _STRICT

    id: str | None  # "ORG/NAME" once recorded; a name alone identifies nothing, see `fingerprint`
    fingerprint: str  # hub/base/fingerprint.py: equal for fp32 and bf16 copies and across transformers versions
    model_type: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int  # longest sequence, virtual tokens included
    learned_positions: bool
    rotary: bool
    parallel_residual: bool
    norm_first: bool
    parameters: int
    modules: dict[str, ModuleSpec]  # by full dotted name

    @cached_property
    def parts(self) -> Parts:
        return family_parts(self.model_type, parallel_residual=self.parallel_residual, norm_first=self.norm_first)

    def module(self, layer: int, part: str) -> str:
        """Full name of `part` in layer `layer`."""
        return self.parts.in_layer(layer, part)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "BaseSpec":
        """Of a manifest that graft wrote; a stranger's is read by `parse_manifest`."""
        raw = json.loads(text)
        modules = {name: ModuleSpec(**module) for name, module in raw.pop("modules").items()}
        return BaseSpec(**raw, modules=modules)


def parse_manifest(text: str) -> BaseSpec:
    """A stranger's manifest. Raises BaseModelError for what no base can be: a field that is missing, of another type or
    unknown, a size that is none, a family without parts."""
    from pydantic import TypeAdapter, ValidationError  # a slow import that few need

    try:
        spec = TypeAdapter(BaseSpec).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise BaseModelError(f"This is no base's manifest ({RECORD}): {where}: {first['msg']}.") from None
    if why := _impossible(spec):
        raise BaseModelError(f"This manifest ({RECORD}) is of no base: {why}.")
    return spec


def _impossible(spec: BaseSpec) -> str | None:
    """Why there can't be such a base; None where there can."""
    sizes = (spec.hidden_size, spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.vocab_size)
    every: tuple[int, ...] = (*sizes, spec.max_positions, spec.parameters)
    every += tuple(size for each in spec.modules.values() for size in (each.in_features, each.out_features))
    if not all(0 < size < MAX_SIZE for size in every):
        return f"a size is not between 1 and {MAX_SIZE:,}"
    if not _FINGERPRINT.fullmatch(spec.fingerprint):
        return "its fingerprint is not 64 hex digits"
    if spec.id is not None and not is_hub_id(spec.id):
        return f"{spec.id!r} is not of the form ORG/NAME"
    if unknown := {each.kind for each in spec.modules.values()} - MODULE_KINDS:
        return f"a module is a {min(unknown)!r}"
    parts = spec.parts  # raises for an unknown family
    needed = [spec.module(layer, part) for layer in (0, spec.num_layers - 1) for part in (*parts.linears, *parts.norms)]
    missing = [name for name in needed if name not in spec.modules]
    return f"it lacks the module {missing[0]}" if missing else None


def is_hub_id(source: str) -> bool:
    """Whether it has the form ORG/NAME."""
    return bool(_HUB_ID.fullmatch(source))


def require_source(source: str, names: Iterable[str]) -> None:
    """Raises BaseModelError for what is neither a folder nor a hub's id: no hub need be asked for it."""
    if not Path(source).exists() and not is_hub_id(source):
        raise BaseModelError(
            f"There is no folder {source}, and it is no hub id such as ORG/NAME, nor one of {', '.join(names)} (which "
            f"`graft base import` fetches). Check --base."
        )


def require_no_adapter(folder: str | Path) -> None:
    """Raises BaseModelError for a folder that holds an adapter: transformers would put it onto the base, unasked."""
    config = Path(folder) / ADAPTER_CONFIG
    if config.is_file():
        beside = (
            "beside a base: move one of them to a folder of its own."
            if (Path(folder) / "config.json").is_file()
            else ("and no base. Give the folder of its base, and the adapter beside it (--adapter NAME=DIR).")
        )
        raise BaseModelError(f"{folder} holds an adapter ({ADAPTER_CONFIG}) {beside}")


def record(folder: str | Path, spec: BaseSpec) -> None:
    """Write the manifest beside the weights."""
    (Path(folder) / RECORD).write_text(spec.to_json())


def recorded_spec(folder: str | Path) -> BaseSpec | None:
    """The manifest beside the weights, None where there is none. Needs no weights."""
    path = Path(folder) / RECORD
    return BaseSpec.from_json(path.read_text()) if path.is_file() else None
