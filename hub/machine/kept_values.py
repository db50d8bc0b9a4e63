"""What was found out once on this machine and need not be found out again: small JSON values in graft's cache folder.

Losing them costs time, nothing else: a cache that can't be read or written, or half a value that a crash left, is as good
as an empty one. Torch-free.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from graft.hub.machine.atomic_files import write_whole
from graft.hub.machine.cache_folder import cache_folder

T = TypeVar("T")


def recall_or_find(kind: str, key: str, find_out: Callable[[], T]) -> T:
    """The value kept under `key`, found out and kept where there is none."""
    there: T | None = recall(kind, key)
    if there is None:
        there = find_out()
        keep(kind, key, there)
    return there


def recall(kind: str, key: str) -> Any:
    """The value kept under `key`, None where there is none."""
    try:
        return json.loads(_path(kind, key).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def keep(kind: str, key: str, value: object) -> None:
    """Keep a value, whole or not at all."""
    path, text = _path(kind, key), json.dumps(value)
    with suppress(OSError):  # a full disk, a read-only home
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / hashlib.sha256(key.encode()).hexdigest()
