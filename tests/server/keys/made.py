"""Key files for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft.server.keys.key_changes import table_text
from graft.server.keys.key_file import KeyTable, hash_of, new_key


def write_keys(path: Path, keys: Mapping[str, Mapping[str, Any]], more: str = "") -> dict[str, str]:
    """A file with these keys, by name, and what each is good for. Returns the keys themselves."""
    made = {name: new_key() for name in keys}
    tables = [KeyTable(name=name, hash=hash_of(made[name]), **given) for name, given in keys.items()]
    path.write_text(more + "".join(map(table_text, tables)), "utf-8")
    return made


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
