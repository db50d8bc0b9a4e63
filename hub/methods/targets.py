"""Which modules of a base a config's patterns mean, with PEFT's matching rules.

A list matches whole names and dotted suffixes; a string is a regular expression over whole names (PEFT
`check_target_module_exists`). Patterns may come from strangers, so expressions that could take long are
refused before they run. Torch-free.
"""

import re
from collections.abc import Iterable, Mapping

from graft.hub.errors import ArtifactError, GraftError
from graft.hub.spec import BaseSpec

ALL_LINEAR = "all-linear"
_MAX_PATTERN = 500  # characters
_MAX_REPEATS = 4  # unbounded quantifiers: bounds the time of a match by a polynomial of the name's length


def match_modules(
    owner: str,
    targets: str | tuple[str, ...],
    spec: BaseSpec,
    *,
    layers: tuple[int, ...] | None = None,
    exclude: str | tuple[str, ...] = (),
    kinds: tuple[str, ...] = ("linear",),
) -> list[str]:
    """Full names of the matched modules, in the base's order.

    Raises GraftError where nothing matches or a matched module is of another kind (an embedding).
    """
    layer_prefix = spec.parts.layers + "."
    matched = []
    for name, module in spec.modules.items():
        if not _matches(targets, name, spec) or _matches(exclude, name, spec):
            continue
        if layers is not None and not (name.startswith(layer_prefix) and _layer(name, layer_prefix) in layers):
            continue
        if module.kind not in kinds:
            raise GraftError(
                f"{owner}: the targets match {name}, a {module.kind}, which can't be adapted per request. "
                f"Leave it out of the targets."
            )
        matched.append(name)
    if not matched:
        known = ", ".join(dict.fromkeys(part.rpartition(".")[2] for part in spec.parts.linears))
        raise GraftError(
            f"{owner}: the targets {targets!r} match no module of this {spec.model_type} base. "
            f"Its linears are {known}; {ALL_LINEAR!r} takes them all."
        )
    return matched


def spelled_out(targets: str | tuple[str, ...], spec: BaseSpec) -> str | tuple[str, ...]:
    """`all-linear` as the list of this family's linears; anything else as it is."""
    if targets in (ALL_LINEAR, (ALL_LINEAR,)):
        return tuple(sorted({part.rpartition(".")[2] for part in spec.parts.linears}))
    return targets


def pattern_value(patterns: Mapping[str, float], name: str, default: float) -> float:
    """PEFT's rank_pattern/alpha_pattern look-up: the first key that matches the end of `name`."""
    for key, value in patterns.items():
        if name == key or name.endswith(f".{key}"):
            return value
        if not re.fullmatch(r"[\w.]+", key) and _compiled(rf"(.*\.)?({key})").fullmatch(name):
            return value
    return default


def layers_of(raw: object) -> tuple[int, ...] | None:
    """PEFT's layers_to_transform: an int, a list of ints, or nothing."""
    if raw is None or raw == []:
        return None
    numbers = [raw] if isinstance(raw, int) else raw
    if not isinstance(numbers, Iterable) or not all(isinstance(n, int) for n in numbers):
        raise ArtifactError(f"layers_to_transform must be layer numbers, not {raw!r}.")
    return tuple(numbers)


def names_of(key: str, raw: object) -> str | tuple[str, ...]:
    """PEFT's target_modules and exclude_modules: a string, or a list of strings."""
    if raw is None:
        return ()
    if isinstance(raw, str):
        return raw
    if isinstance(raw, (list, tuple)) and all(isinstance(name, str) for name in raw):
        return tuple(sorted(raw))
    raise ArtifactError(f"{key} must be a pattern or a list of module names, not {raw!r}.")


def _matches(targets: str | tuple[str, ...], name: str, spec: BaseSpec) -> bool:
    if not targets:
        return False
    if targets == ALL_LINEAR:
        return spec.modules[name].kind == "linear" and name != spec.parts.lm_head
    if isinstance(targets, str):
        return _compiled(targets).fullmatch(name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _layer(name: str, prefix: str) -> int:
    return int(name[len(prefix) :].split(".", 1)[0])


def _compiled(pattern: str) -> re.Pattern[str]:
    # A quantifier over a group, or many quantifiers, can take exponential or very long time.
    repeats = len(re.findall(r"[*+]|\{\d*,\d*\}", pattern))
    nested = re.search(r"\)[*+{]", pattern) or re.search(r"\\\d", pattern)
    if len(pattern) > _MAX_PATTERN or repeats > _MAX_REPEATS or nested:
        raise ArtifactError(
            f"The module pattern {pattern[:80]!r} is too complex to run on a stranger's word "
            f"(at most {_MAX_PATTERN} characters, {_MAX_REPEATS} repeats, no repeated groups). List the "
            f"modules by name instead."
        )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ArtifactError(f"The module pattern {pattern[:80]!r} is no regular expression: {error}.") from None
