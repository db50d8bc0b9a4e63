"""A schema's patterns, as the grammar library reads them: what they match there, validators of every language match too.

JSON Schema means ECMAScript's expressions; the library's are Rust's, and many validators' are Python's.
"""

import re

from graft.server.errors import ConstraintError

_SPACE = r"[ \t\n\x0B\x0C\r]"  # in all three
_NO_SPACE = r"[^\t-\r\x1C-\x20\x85\xA0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000\uFEFF]"  # likewise
_ANY = r"[^\n\r\u2028\u2029]"
_CLASSES = {r"\s": _SPACE, r"\S": _NO_SPACE}
_ONLY_IN_RUST = ("[", "&", "~")  # mean something within a class


def portable(pattern: str) -> str:
    """Raises ConstraintError for a class of nothing or of everything, which Rust has not."""
    parts: list[str] = []
    inside = False
    for symbol in re.findall(r"\\.|\[\^?|.", pattern, re.DOTALL):
        if inside:
            if symbol == "]" and parts[-1] in ("[", "[^"):
                raise ConstraintError(f"The schema's pattern {pattern!r} has an empty class.")
            inside = symbol != "]"
            parts.append(_CLASSES.get(symbol) or ("\\" + symbol if symbol.startswith(_ONLY_IN_RUST) else symbol))
        else:
            inside = symbol.startswith("[")
            parts.append(_CLASSES.get(symbol) or (_ANY if symbol == "." else symbol))
    return "".join(parts)
