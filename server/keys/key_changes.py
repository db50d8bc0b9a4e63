"""The file of keys as commands change it: whole or not at all, one after another, and nothing else that stands in it. Torch-free."""

import io
import os
import re
from collections.abc import Callable, Sequence, Set
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from graft.hub.errors import ConflictError, NotFoundError
from graft.hub.machine.atomic_files import Rights, flush, write_whole
from graft.hub.machine.file_locks import alone_in
from graft.server.keys.key_file import KeyFileError, KeyTable, KeyTables, read_tables, read_text

NEW_RIGHTS = Rights(0o600)
WAIT_S = 10.0
_TABLE = re.compile(r"\s*\[")  # what a line begins with that begins a table, unless it stands in a text or a list
_MOST_SHOWN = 64  # characters of a name that is none


def add_key(path: Path, table: KeyTable) -> None:
    """Raises ConflictError for a name that is taken, KeyFileError for a file that can't be used as it stands, or written."""

    def with_it() -> str:
        before = read_text(path) if path.exists() else ""
        if any(known.name == table.name for known in read_tables(before, path).key):
            raise ConflictError(
                f"{path} has a key {table.name!r} already: choose another name, or revoke that one first."
            )
        return before + table_text(table)

    _change(path, with_it)


def remove_keys(path: Path, names: Set[str]) -> None:
    """All of them or none. Raises NotFoundError for a name that is none's, ConflictError where no key would be left,
    KeyFileError for a file that can't be used as it stands, or written."""

    def without_them() -> str:
        before = read_text(path)
        tables = read_tables(before, path)
        if unknown := sorted(names - {table.name for table in tables.key}):
            raise NotFoundError(
                f"{path} has no key {unknown[0][:_MOST_SHOWN]!r}: `graft keys list` shows those it has."
            )
        left = KeyTables(key=[table for table in tables.key if table.name not in names], hub=tables.hub)
        if not left.key and left.hub is None:
            raise ConflictError(
                f"{path} would hold no key any more, and a server takes such a file for a broken one and goes on with the "
                f"keys of before: make another key first (`graft keys new NAME`)."
            )
        after = _without(before, names, path)
        if _tables(after, path) != left:
            raise KeyFileError(f"The key file {path} is not written as a table [[key]] each: take them out by hand.")
        return after

    _change(path, without_them)


def _change(path: Path, make_text: Callable[[], str]) -> None:
    """Other commands wait meanwhile; a server sees the file of before or that of after."""
    there = Path(os.path.realpath(path))  # what a link leads to
    try:
        there.parent.stat()
        if there.exists() and not there.is_file():
            raise KeyFileError(f"The key file {path} is no regular file.")  # whose place none can take
        with alone_in(there.parent, WAIT_S):
            text = make_text()
            read_tables(text, path)
            write_whole(there, text, Rights.of(there) if there.exists() else NEW_RIGHTS)
            flush(there)
            flush(there.parent)
    except OSError as error:
        raise KeyFileError(
            f"The key file {path} can't be written ({error.strerror}): it takes its owner, who may write to its folder."
        ) from None


def _without(text: str, names: Set[str], path: Path) -> str:
    """Without their tables and the comments right above those; as far as each table stands by itself."""
    lines = io.StringIO(text).readlines()
    begins = [_first_comment(lines, number) for number, line in enumerate(lines) if _TABLE.match(line)]
    begins.append(len(lines))
    kept = lines[: begins[0]]
    for begin, end in pairwise(begins):
        tables = _tables("".join(lines[begin:end]), path)
        if tables is None or names.isdisjoint(table.name for table in tables.key):
            kept += lines[begin:end]
    return "".join(kept)


def _first_comment(lines: Sequence[str], table: int) -> int:
    """The line where the comments right above a table begin."""
    while table > 0 and lines[table - 1].lstrip().startswith("#"):
        table -= 1
    return table


def _tables(text: str, path: Path) -> KeyTables | None:
    """None where it is no key file."""
    try:
        return read_tables(text, path)
    except KeyFileError:
        return None


def table_text(table: KeyTable) -> str:
    """As the file has it, without what is as if not given."""
    head = {"name": table.name, "hash": table.hash}
    given = head | table.model_dump(exclude_defaults=True)
    return "\n[[key]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in given.items())


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case str():
            return '"' + "".join(_escaped(letter) for letter in value) + '"'
        case Sequence():
            return f"[{', '.join(map(_toml, value))}]"
        case _:
            raise TypeError(f"{type(value).__name__} has no place in a key file")


def _escaped(letter: str) -> str:
    return f"\\{letter}" if letter in '"\\' else letter if letter.isprintable() else f"\\U{ord(letter):08x}"
