"""Whether the disk has room for what a training will write, asked before it begins."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from graft.hub.errors import GraftError
from graft.trainer.learner import Learner
from graft.trainer.memory import bytes_text

_BYTES_PER_PARAMETER = 4 * (1 + 3)  # float32: the artifact; a checkpoint of parameters and both moments


def require_room(learners: Mapping[Path, Learner]) -> None:
    """`learners` by output folder. Raises GraftError naming a disk that is too full for its artifacts and checkpoints."""
    needed: dict[int, int] = defaultdict(int)
    where: dict[int, Path] = {}
    for out, learner in learners.items():
        there = next(folder for folder in Path(out).resolve().parents if folder.exists())
        disk = there.stat().st_dev
        needed[disk] += learner.trained_parameters * _BYTES_PER_PARAMETER
        where.setdefault(disk, there)
    for disk, bytes_needed in needed.items():
        free = shutil.disk_usage(where[disk]).free
        if bytes_needed > free:
            raise GraftError(
                f"{where[disk]} has {bytes_text(free)} left, and this training writes up to {bytes_text(bytes_needed)} "
                f"there, its checkpoint included. Make room or choose another --out."
            )
