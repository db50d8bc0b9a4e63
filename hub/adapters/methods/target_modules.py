"""Which modules of a base a config's patterns mean, with PEFT's matching rules.

A list matches whole names and dotted suffixes; a string is a regular expression over whole names. Patterns may
come from strangers: they run under a time limit, and what could fill the memory is refused before. Torch-free.
"""

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import TypeVar

import regex

from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import ArtifactError, GraftError

ALL_LINEAR = "all-linear"
Targets = str | tuple[str, ...]
N = TypeVar("N", int, float)
_MAX_PATTERN = 2000  # characters
_MAX_COUNT = 10_000  # product of all counted repeats: the engine unrolls them
_SECONDS = 2.0  # for one pattern over all names of a base; an honest one takes milliseconds


def match_modules(
    owner: str,
    targets: Targets,
    spec: BaseSpec,
    *,
    layers: tuple[int, ...] | None = None,
    exclude: Targets = (),
    kinds: tuple[str, ...] = ("linear",),
) -> list[str]:
    """Full names of the matched modules, in the base's order.

    Raises GraftError where nothing matches or a matched module is of another kind (an embedding).
    """
    wanted, unwanted = _matches(targets, spec), _matches(exclude, spec)
    matched = [
        name for name in spec.modules if name in wanted and name not in unwanted and _in_layers(name, layers, spec)
    ]
    for name in matched:
        if spec.modules[name].kind not in kinds:
            raise GraftError(
                f"{owner}: the targets match {name}, a {spec.modules[name].kind}, which can't be adapted per "
                f"request. Leave it out of the targets."
            )
    if not matched:
        known = ", ".join(dict.fromkeys(part.rpartition(".")[2] for part in spec.parts.linears))
        raise GraftError(
            f"{owner}: the targets {targets!r} match no module of this {spec.model_type} base. "
            f"Its linears are {known}; {ALL_LINEAR!r} takes them all."
        )
    return matched


def spell_out(targets: Targets, spec: BaseSpec) -> Targets:
    """`all-linear` as the list of this family's linears; anything else as it is."""
    if targets in (ALL_LINEAR, (ALL_LINEAR,)):
        return tuple(sorted({part.rpartition(".")[2] for part in spec.parts.linears}))
    return targets


def pattern_values(patterns: Mapping[str, N], names: Iterable[str], default: N) -> dict[str, N]:
    """PEFT's rank_pattern and alpha_pattern: for each name the value of the first key that matches its end."""
    names = list(names)
    values = dict.fromkeys(names, default)
    deadline = time.monotonic() + _SECONDS
    for key, value in reversed(list(patterns.items())):
        for name in full_matches(rf"(.*\.)?({key})", names, deadline):
            values[name] = value
    return values


def full_matches(pattern: str, names: Iterable[str], deadline: float | None = None) -> set[str]:
    """The names that `pattern` matches whole. Raises ArtifactError for a pattern that is broken or takes too long."""
    counts = [int(n) for braces in re.findall(r"\{[\d,]*\}", pattern) for n in re.findall(r"\d{1,9}", braces)]
    if len(pattern) > _MAX_PATTERN or math.prod(max(count, 1) for count in counts) > _MAX_COUNT:
        raise _complexity_error(pattern)
    deadline = deadline or time.monotonic() + _SECONDS
    try:
        compiled = regex.compile(pattern)
        if time.monotonic() > deadline:  # thousands of patterns take long too, each in no time
            raise TimeoutError
        return {name for name in names if compiled.fullmatch(name, timeout=_rest(deadline), concurrent=True)}
    except (regex.error, RecursionError, OverflowError) as error:
        raise ArtifactError(f"The module pattern {pattern[:80]!r} is no regular expression: {error}.") from None
    except (TimeoutError, MemoryError):
        raise _complexity_error(pattern) from None


def _rest(deadline: float) -> float:
    """Seconds; the engine takes 0 for no limit."""
    return max(deadline - time.monotonic(), 0.001)


def layers_of(raw: object) -> tuple[int, ...] | None:
    """PEFT's layers_to_transform: an int, a list of ints, or nothing."""
    if raw is None or raw == []:
        return None
    numbers = raw if isinstance(raw, list) else [raw]
    if not all(type(n) is int and n >= 0 for n in numbers):
        raise ArtifactError(f"layers_to_transform must be layer numbers, not {raw!r}.")
    return tuple(sorted(numbers))


def names_of(key: str, raw: object) -> Targets:
    """PEFT's target_modules and exclude_modules: a string, or a list of strings."""
    if raw is None:
        return ()
    if isinstance(raw, str):
        return raw
    if isinstance(raw, list) and all(isinstance(name, str) for name in raw):
        return tuple(sorted(raw))
    raise ArtifactError(f"{key} must be a pattern or a list of module names, not {raw!r}.")


def _matches(targets: Targets, spec: BaseSpec) -> set[str]:
    if not targets:
        return set()
    if targets == ALL_LINEAR:
        return {n for n, module in spec.modules.items() if module.kind == "linear" and n != spec.parts.lm_head}
    if isinstance(targets, str):
        return full_matches(targets, spec.modules)
    ends = tuple(f".{target}" for target in targets)
    return {name for name in spec.modules if name in targets or name.endswith(ends)}


def _in_layers(name: str, layers: tuple[int, ...] | None, spec: BaseSpec) -> bool:
    prefix = spec.parts.layers + "."
    return layers is None or (name.startswith(prefix) and int(name[len(prefix) :].split(".", 1)[0]) in layers)


def _complexity_error(pattern: str) -> ArtifactError:
    return ArtifactError(
        f"The module pattern {pattern[:80]!r} is too complex to run on a stranger's word (over {_SECONDS:.0f} s, "
        f"{_MAX_PATTERN} characters or {_MAX_COUNT} counted repeats). List the modules by name instead."
    )
