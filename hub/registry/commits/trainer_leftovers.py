"""What lies in an adapter's folder without being part of it: left out, by name, where a folder is published or pushed.

A trainer leaves optimizer states, logs and checkpoints beside an adapter. None of that may be stored (accepted_files.py), and
none of it should keep the adapter from being published either. Only the files that an adapter is made of are never left
out: what is wrong with one of them is an error. Knows neither SQLite nor HTTP.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from graft.hub.adapters.validation import CARD, CONFIG, PICKLES, PROVENANCE, WEIGHTS, pickled_weights
from graft.hub.errors import ArtifactError, TooLargeError
from graft.hub.registry.commits.accepted_files import check_path, check_size, check_start

ESSENTIAL = frozenset((CONFIG, *WEIGHTS, PROVENANCE, CARD))
# Folders that trainers and loggers write beside an adapter, whatever is in them.
_TRAINING = re.compile(r"(last-)?checkpoint(-[\w.]+)?|global_step\d+|runs|wandb|mlruns|lightning_logs")
_WEIGHT_STEMS = frozenset(("adapter_model", "adapter", "pytorch_adapter", "pytorch_model"))
_MAX_LISTED = 8


@dataclass(frozen=True)
class LeftOut:
    """A file that stays where it is, and why."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path} ({self.why})"


def find_leftover(path: str, size: int, start: bytes, max_bytes: int) -> LeftOut | None:
    """Why a file is no part of what is published; None for one that is, or that an adapter can't be without.

    `max_bytes`: how large weights may be. `start`: the file's first bytes.
    """
    if path in ESSENTIAL:
        return None
    name = PurePosixPath(path)
    if any(_TRAINING.fullmatch(part) for part in name.parts[:-1]):
        return LeftOut(path, "of a checkpoint or a log")
    if name.suffix.lower() in PICKLES:
        return LeftOut(path, "a pickle, which could run code where it is loaded")
    try:
        check_path(path)
    except ArtifactError:
        return LeftOut(path, "no kind of file, or no name, that an adapter needs")
    try:
        check_size(path, size, max_bytes)
        check_start(path, start)
    except TooLargeError:
        return LeftOut(path, f"too large: {size:,} bytes")
    except ArtifactError:
        return LeftOut(path, "it is not what its name says")
    return None


def require_no_pickled_adapter(paths: Iterable[str]) -> None:
    """Raises ArtifactError where an adapter's weights are there as a pickle only: leaving it out would leave nothing."""
    there = set(paths)
    if there & set(WEIGHTS):
        return
    for path in sorted(there):
        name = PurePosixPath(path)
        if len(name.parts) == 1 and name.suffix.lower() in PICKLES and name.stem in _WEIGHT_STEMS:
            raise pickled_weights(path)


def list_leftovers(files: Iterable[LeftOut]) -> str:
    """In one line, reason by reason; of many with one reason a few, and how many more there are."""
    reasons: dict[str, list[str]] = {}
    for file in files:
        reasons.setdefault(file.why, []).append(file.path)
    return "; ".join(f"{_shorten(paths)} ({why})" for why, paths in reasons.items())


def _shorten(paths: list[str]) -> str:
    more = f" and {len(paths) - _MAX_LISTED} more" if len(paths) > _MAX_LISTED else ""
    return ", ".join(paths[:_MAX_LISTED]) + more
