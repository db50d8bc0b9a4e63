"""Which JSON schemas can be kept to exactly: the keywords that are honoured, and what is refused by name.

A keyword is honoured, or says nothing about what is valid (an annotation, or one that no specification knows), or the schema
is refused. Nothing that would let an invalid text through is left aside.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import lcm

from graft.server.errors import ConstraintError
from graft.server.structured.patterns import portable

MAX_DEPTH = 60  # of a schema's nesting
MAX_PROPERTIES = 1000  # of one object: compiling takes time with their square
MAX_MULTIPLE = 10_000  # of all multipleOf together, in their last decimals: an automaton has a state for each
_ONE = ("additionalItems", "additionalProperties", "items")  # each holds one schema
_SEVERAL = ("allOf", "anyOf", "oneOf", "prefixItems")  # a list of them
_NAMED = ("$defs", "definitions", "properties", "patternProperties")  # name -> schema
REFUSED = frozenset(
    (
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
        *("dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
        *("$dynamicRef", "$recursiveRef", "divisibleBy", "disallow", "extends"),
    )
)
FORMATS = frozenset(("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"))
_DATE = (
    r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_NAME, _LABEL = r"[A-Za-z0-9_%+-]{1,30}", r"[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?"
# Written here, for the library's own let through what validators refuse: leap seconds at any time, names of any length.
_PATTERNS = {
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "email": f"^{_NAME}(\\.{_NAME})?@({_LABEL}\\.){{1,3}}[A-Za-z]{{2,20}}$",
}


def prepare_schema(schema: object) -> None:
    """Check a schema, and spell out in it what the library reads otherwise than validators do.

    Raises ConstraintError, saying where, for what can't be honoured.
    """
    together = 1
    for place, part in _parts(schema, "", 0):
        for keyword in sorted(REFUSED & part.keys()):
            if not _says_nothing(keyword, part[keyword]):
                raise ConstraintError(f"The schema's keyword {keyword!r} ({place or '/'}) is not supported here.")
        _check_values(place or "/", part)
        _spell_out(part)
        together = lcm(together, _states(part.get("multipleOf")))
        if together > MAX_MULTIPLE:
            raise ConstraintError(
                f"The schema's multipleOf ({place or '/'}) is too fine or too large, with the others."
            )


def _spell_out(part: dict[str, object]) -> None:
    if isinstance(pattern := part.get("pattern"), str):
        part["pattern"] = portable(pattern)
    if isinstance(named := part.get("patternProperties"), dict):
        part["patternProperties"] = {portable(pattern): schema for pattern, schema in named.items()}
    if (pattern := _PATTERNS.get(str(part.get("format")))) is not None:
        del part["format"]
        part["allOf"] = [*_listed(part.get("allOf")), {"pattern": pattern}]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _check_values(place: str, part: Mapping[str, object]) -> None:
    named = part.get("format")
    if isinstance(named, str) and named not in FORMATS:
        raise ConstraintError(f"The schema's format {named!r} ({place}) is not supported here.")
    if isinstance(named := part.get("properties"), dict) and len(named) > MAX_PROPERTIES:
        raise ConstraintError(
            f"The schema has {len(named)} properties in one object ({place}), more than {MAX_PROPERTIES}."
        )
    least, required = part.get("minProperties"), part.get("required")
    if isinstance(least, int) and least > (len(set(map(str, required))) if isinstance(required, list) else 0):
        raise ConstraintError(
            f"The schema's minProperties ({place}) is not supported here beyond the required ones: "
            f"a name that comes twice can't be told from two."
        )
    if part.get("nullable") is True and "null" not in str(part.get("type")):
        raise ConstraintError(f"'nullable' ({place}) is no keyword of JSON Schema: add \"null\" to the type.")


def _states(multiple: object) -> int:
    """What multipleOf multiplies the automaton's states by."""
    if not isinstance(multiple, int | float) or multiple <= 0:
        return 1  # none, or one that the compiler will refuse
    step = Fraction(str(multiple))
    return step.numerator * step.denominator


def _says_nothing(keyword: str, value: object) -> bool:
    """Whether a keyword that is not supported excludes nothing."""
    return keyword == "uniqueItems" and value is False


def _parts(schema: object, place: str, depth: int) -> Iterator[tuple[str, dict[str, object]]]:
    """All schemas within a schema, and where they stand."""
    if depth > MAX_DEPTH:
        raise ConstraintError(f"The schema is nested more than {MAX_DEPTH} deep.")
    if not isinstance(schema, dict):
        return  # true, false, or what the compiler will refuse
    yield place, schema
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            for name, part in value.items():
                yield from _parts(part, f"{place}/{keyword}/{name}", depth + 1)
        elif keyword in (*_ONE, *_SEVERAL):
            for i, part in enumerate(value if isinstance(value, list) else (value,)):
                yield from _parts(
                    part, f"{place}/{keyword}/{i}" if isinstance(value, list) else f"{place}/{keyword}", depth + 1
                )
