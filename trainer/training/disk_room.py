"""Whether the disk has room for what a training will write, asked before it begins."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from graft.hub.errors import GraftError
from graft.hub.machine.bytes_text import bytes_text
from graft.hub.machine.output_folder import room_at
from graft.trainer.learners.learner import Learner

_BYTES_PER_PARAMETER = 4 * (1 + 3)  # float32: the artifact; a checkpoint of parameters and both moments


def require_room(learners: Mapping[Path, Learner]) -> None:
    """`learners` by output folder. Raises GraftError naming a disk that is too full for its artifacts and checkpoints."""
    needed: dict[int, int] = defaultdict(int)
    rooms: dict[int, tuple[Path, int]] = {}
    for out, learner in learners.items():
        there, free = room_at(out)
        disk = there.stat().st_dev
        needed[disk] += learner.trained_parameters * _BYTES_PER_PARAMETER
        rooms.setdefault(disk, (there, free))
    for disk, bytes_needed in needed.items():
        there, free = rooms[disk]
        if bytes_needed > free:
            raise GraftError(
                f"{there} has {bytes_text(free)} left, and this training writes up to {bytes_text(bytes_needed)} "
                f"there, its checkpoint included. Make room or choose another --out."
            )
