"""Resumable checkpoints: what a training needs to continue bit for bit, beside the artifact and never in it.

For an adapter that will be written to OUT it is OUT.training/state.safetensors: parameters with their encoder,
optimiser moments, generators, and as its metadata the progress and what the training was told. One file, so that
whatever kills a run while it saves leaves the checkpoint before. That one is kept beside it (previous.safetensors):
adapters trained together continue bit for bit only from the same save, and a kill may fall between two of theirs.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from graft.hub.errors import GraftError
from graft.hub.machine.atomic_files import write_folder_whole
from graft.trainer.learners.learner import Learner, LearnerFacts
from graft.trainer.plan.plan import training_folder

_STATE, _PREVIOUS = "state.safetensors", "previous.safetensors"


class CheckpointFacts(LearnerFacts):
    """All that a checkpoint says beside its tensors."""

    told: dict[str, Any]  # what has to be the same to continue


def save_checkpoint(learner: Learner, out: Path, told: Mapping[str, object], save: str) -> None:
    """Write the state whole. `told`: what else has to be the same to continue; `save`: names this save of all adapters.

    Raises GraftError for a full disk.
    """
    tensors, facts = learner.state()
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    metadata = {"facts": json.dumps({**facts, "told": _conditions(learner, told)}), "save": save}
    folder = training_folder(out)
    try:
        with write_folder_whole(folder) as staging:
            with suppress(OSError):  # there is none yet, or the file system has no links: then there is no second one
                os.link(folder / _STATE, staging / _PREVIOUS)
            save_file(contiguous, staging / _STATE, metadata=metadata)
    except OSError as error:
        kept = "; the one before is still there" if (folder / _STATE).exists() else ""
        why = f"The checkpoint {folder} can't be written ({error.strerror}){kept}. Make room there."
        raise GraftError(why) from None


def common_save(outs: Sequence[Path]) -> str | None:
    """The latest save of which every checkpoint among these has a file; None where there is none."""
    folders = [folder for out in outs if (folder := training_folder(out)).exists()]
    kept = [(_save_of(folder / _STATE), _save_of(folder / _PREVIOUS)) for folder in folders]
    newest_first = [saves[age] for age in (0, 1) for saves in kept]
    return next((save for save in newest_first if save and all(save in saves for saves in kept)), None)


def _save_of(path: Path) -> str | None:
    """Which save a file is of; None where it can't be read, which `load_checkpoint` tells."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("save")
    except (OSError, SafetensorError):
        return None


def load_checkpoint(learner: Learner, out: Path, told: Mapping[str, object], save: str | None = None) -> bool:
    """Continue from a checkpoint, that of `save` where there is one; False where there is none at all.

    Raises GraftError where it belongs to another method, recipe, base or data, or can't be read.
    """
    path, previous = (training_folder(out) / name for name in (_STATE, _PREVIOUS))
    if save is not None and _save_of(previous) == save != _save_of(path):
        path = previous
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            facts: CheckpointFacts = json.loads((file.metadata() or {}).get("facts", ""))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise GraftError(f"The checkpoint {path} can't be read ({error}). Remove it to start again.") from None
    now = json.loads(json.dumps(_conditions(learner, told)))
    if different := sorted(key for key in now if now[key] != facts["told"].get(key)):
        raise GraftError(
            f"The checkpoint {path} was made with another {different[0]} "
            f"({facts['told'].get(different[0])!r}, now {now[different[0]]!r}). Train with the same, or remove it."
        )
    learner.load_state(tensors, facts)
    return True


def kept_facts(out: Path) -> CheckpointFacts | None:
    """What the checkpoint beside `out` says of itself; None where there is none that can be read."""
    try:
        with safe_open(training_folder(out) / _STATE, framework="pt") as file:
            return json.loads((file.metadata() or {})["facts"])
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def kept_step(out: Path) -> int:
    """The step from which the checkpoint beside `out` continues; 0 where there is none."""
    facts = kept_facts(out)
    return facts["progress"]["step"] if facts else 0


def drop_checkpoint(out: Path) -> None:
    """The artifact is written: its training state has done its work."""
    shutil.rmtree(training_folder(out), ignore_errors=True)


def _conditions(learner: Learner, told: Mapping[str, object]) -> dict[str, object]:
    return {**learner.describe(), **told, **asdict(learner.recipe)}
