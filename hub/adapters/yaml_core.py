"""YAML as its version 1.2 reads it (the core schema), and nothing in it that JSON can't say.

PyYAML reads 1.1, where `no` is false, `2024-05-01` a date, `12:30` a number and `010` eight: a card's language Norwegian
became "False". What remains beyond JSON (NaN, infinities, dates by an explicit tag) is made plain here, at the door, so
that neither SQL nor a client's JSON parser meets it.
"""

import math
import re
from datetime import date

import yaml

MAX_NODES = 10_000  # keys, values and lists of a document: reading one takes 20 microseconds
MAX_DEPTH = 50  # brackets in brackets: PyYAML goes through all that are open at each further word
MAX_WHOLE = 2**63  # beyond it a whole number is kept as a float: SQL and most JSON readers take no larger one
_TAG = "tag:yaml.org,2002:"
# kind -> the characters it may begin with, the words that are of it
_KINDS = {
    "null": (["~", "n", "N", ""], r"~|null|Null|NULL|"),
    "bool": (list("tTfF"), r"true|True|TRUE|false|False|FALSE"),
    "int": (list("-+0123456789"), r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": (
        list("-+0123456789."),
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    ),
}


class _Core(yaml.SafeLoader):
    """Without aliases: ten lines of them can stand for gigabytes. What takes long is bounded while it is read."""

    yaml_implicit_resolvers: dict[str, object] = {}  # noqa: RUF012  PyYAML's own name, filled below

    def __init__(self, text: str):
        super().__init__(text)
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read, write the value out")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise yaml.YAMLError(f"it has more than {MAX_NODES:,} keys and values")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise yaml.YAMLError(f"it has more than {MAX_DEPTH} brackets in one another")
        super().fetch_flow_collection_start(token)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


for _kind, (_starts, _words) in _KINDS.items():
    _Core.add_implicit_resolver(_TAG + _kind, re.compile(f"({_words})\\Z"), _starts)
_Core.add_constructor(_TAG + "int", _Core.construct_int)


def load(text: str) -> object:
    """The document as JSON's kinds. Raises yaml.YAMLError, ValueError or RecursionError for what is none."""
    try:
        return _simplify(yaml.load(text, _Core))  # a SafeLoader
    except (
        AttributeError,
        LookupError,
        TypeError,
    ) as error:  # PyYAML, of a value that isn't what its tag says: !!bool x
        raise yaml.YAMLError(f"a value is not of the kind that its tag (!!...) says: {error!r}") from None


def _simplify(value: object) -> object:
    match value:
        case None | bool():
            return value
        case str():
            return value.encode("utf-8", "replace").decode()  # half a surrogate pair can be spelled, and not stored
        case int():
            return value if abs(value) < MAX_WHOLE else _simplify(_as_float(value))
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {_key(key): _simplify(item) for key, item in value.items()}
        case list() | tuple() | set():
            return [_simplify(item) for item in value]
        case date():
            return value.isoformat()
    return None  # bytes


def _as_float(value: int) -> float:
    return float(value) if abs(value) < 1 << 1023 else math.inf


def _key(key: object) -> str:
    """A mapping's key as JSON spells it."""
    plain = _simplify(key)
    return str(plain).lower() if isinstance(plain, bool) else "null" if plain is None else str(plain)
