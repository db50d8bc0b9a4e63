"""Which JSON schemas can be kept to exactly: the keywords that are honoured, and what is refused by name.

A keyword is honoured, or says nothing about what is valid (an annotation, or one that no specification knows), or the schema
is refused. Nothing that would let an invalid text through is left aside.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction

from graft.server.errors import ConstraintError

MAX_DEPTH = 60  # of a schema's nesting
MAX_MULTIPLE = 10_000  # of multipleOf, counted in its last decimal: an automaton has a state for each
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
FORMATS = frozenset(
    ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "unknown")
)


def check_schema(schema: object) -> None:
    """Raises ConstraintError, saying where, for what can't be honoured."""
    for place, part in _parts(schema, "", 0):
        for keyword in sorted(REFUSED & part.keys()):
            if not _says_nothing(keyword, part[keyword]):
                raise ConstraintError(f"The schema's keyword {keyword!r} ({place or '/'}) is not supported here.")
        _check_values(place or "/", part)


def _check_values(place: str, part: Mapping[str, object]) -> None:
    named = part.get("format")
    if isinstance(named, str) and named not in FORMATS:
        raise ConstraintError(f"The schema's format {named!r} ({place}) is not supported here.")
    if part.get("nullable") is True and "null" not in str(part.get("type")):
        raise ConstraintError(f"'nullable' ({place}) is no keyword of JSON Schema: add \"null\" to the type.")
    multiple = part.get("multipleOf")
    if isinstance(multiple, int | float) and multiple > 0:
        step = Fraction(str(multiple))
        if max(step.numerator, step.denominator) > MAX_MULTIPLE:
            raise ConstraintError(f"The schema's multipleOf {multiple} ({place}) is too fine or too large.")


def _says_nothing(keyword: str, value: object) -> bool:
    """Whether a keyword that is not supported excludes nothing."""
    return keyword == "uniqueItems" and value is False


def _parts(schema: object, place: str, depth: int) -> Iterator[tuple[str, Mapping[str, object]]]:
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
