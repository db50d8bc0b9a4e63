"""What was found out once on this machine and need not be found out again: small texts in graft's cache folder.

Losing them costs time, nothing else: a cache that can't be read or written is as good as an empty one. Torch-free.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from graft.hub.cachedir import cache_folder


def kept(kind: str, key: str, find_out: Callable[[], str]) -> str:
    """The text kept under `key`, found out and kept where there is none."""
    there = recall(kind, key)
    if there is None:
        there = find_out()
        keep(kind, key, there)
    return there


def recall(kind: str, key: str) -> str | None:
    """The text kept under `key`, None where there is none."""
    try:
        return _path(kind, key).read_text("utf-8")
    except (OSError, ValueError):
        return None


def keep(kind: str, key: str, text: str) -> None:
    """Keep a text, whole or not at all."""
    path = _path(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # gone again whatever fails
            fresh = Path(folder) / path.name
            fresh.write_text(text, "utf-8")
            os.replace(fresh, path)
    except OSError:  # a full disk, a read-only home
        return


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / hashlib.sha256(key.encode()).hexdigest()
