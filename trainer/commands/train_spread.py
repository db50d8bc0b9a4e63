"""A plan's adapters and baselines trained as tasks of a Ray cluster, each alone; artifacts and checkpoints are written here."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import CONFIG_NAME

from graft.hub.adapters.validation import WEIGHTS
from graft.hub.base.wanted_base import WantedBase, wanted_base
from graft.hub.errors import GraftError
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.machine.folder_files import Files, write_files
from graft.hub.machine.ray_tasks import Cluster, Piece, Spread
from graft.trainer.commands.shared import read_template
from graft.trainer.learners.job import TrainingOutcome
from graft.trainer.plan.plan import BASELINES, AdapterPlan, Plan, check_against_spec, training_folder
from graft.trainer.training.checkpoints import drop_checkpoint
from graft.trainer.training.dtype_speed import TRAINING
from graft.trainer.training.sent import Begun, SentPlan, SentRun, Trained, examples_of, sent_plan, train_sent

Say = Callable[[str], None]


def wanted_by(plan: Plan, chat_template: Path | None, say: Say, begun_in: str | None = None) -> WantedBase:
    """The base that every worker is to train on. Raises GraftError for what doesn't suit it."""
    run, words = plan.run, read_template(chat_template)
    wanted, spec = wanted_base(
        plan.base, run.dtype or begun_in, run.device, TRAINING, say, quantize=run.quantize, chat_template=words
    )
    check_against_spec(plan, spec)
    return wanted


def train_spread(
    plan: Plan,
    wanted: WantedBase,
    spread: Spread,
    done: list[TrainingOutcome],
    say: Say,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train them all; fills `done`, in the plan's order at the end, so that what is finished is known though something fails.

    At Ctrl-C what runs leaves its checkpoint, and KeyboardInterrupt is raised. Raises GraftError naming each that failed, once
    the others are trained.
    """
    if not resume:
        for adapter in plan.adapters:
            drop_checkpoint(adapter.out)  # of what is to be overwritten
    shared = SentRun(wanted, plan.run, examples_of(plan.adapters), resume, overwrite)
    by_name = {str(adapter.out): adapter for adapter in plan.adapters}
    queue = deque(Piece(name, partial(sent_plan, adapter, resume=resume)) for name, adapter in by_name.items())
    failed: list[str] = []
    with Cluster(spread, say) as cluster:
        for piece, found in cluster.run(train_sent, shared, queue, gpu=wanted.device == "cuda"):
            adapter = by_name[piece.name]
            try:
                _hear(piece, found, adapter, queue, done, say)
            except GraftError as error:
                failed.append(f"{adapter.label}: {error}")
                say(failed[-1])
    places = {adapter.out: place for place, adapter in enumerate(plan.adapters)}
    done.sort(key=lambda outcome: places.get(outcome.folder, len(places)) if outcome.folder else len(places))
    if failed:
        raise GraftError("; ".join(failed))


def _hear(
    piece: Piece[SentPlan],
    found: Trained | Begun | GraftError,
    adapter: AdapterPlan,
    queue: deque[Piece[SentPlan]],
    done: list[TrainingOutcome],
    say: Say,
) -> None:
    """Keep what came of a piece; one that goes on is sent again. Raises the GraftError that it ended with, or that keeping it did."""
    if isinstance(found, GraftError):
        raise found
    for line in found.said:
        say(line)
    if isinstance(found, Trained):
        done.append(_keep(adapter, found))
        ended = done[-1]
        say(f"{ended.name}: {ended.stopped or f'{ended.steps} steps in {ended.seconds:.1f} s, loss {ended.loss:.4f}'}")
    else:
        if found.checkpoint:
            keep_checkpoint(adapter, found.checkpoint)
        say(f"{adapter.label}: step {found.step}")
        queue.append(piece)


def _keep(adapter: AdapterPlan, trained: Trained) -> TrainingOutcome:
    """Write a folder whole; what can't be written is reported, as of a training here."""
    outcome = trained.outcome
    if outcome.folder is None or trained.files is None:
        if trained.checkpoint:
            keep_checkpoint(adapter, trained.checkpoint)
        return outcome
    try:
        write_trained(adapter, trained.files)
    except OSError as error:
        return replace(outcome, folder=None, stopped=f"could not be saved: {error}")
    drop_checkpoint(adapter.out)
    return outcome


def write_trained(adapter: AdapterPlan, files: Files) -> None:
    """The artifact's folder, or a baseline's base. Raises OSError."""
    last = [CONFIG_NAME] if adapter.method in BASELINES else WEIGHTS
    with write_folder_whole(adapter.out, last=last) as staging:
        write_files(files, staging)


def keep_checkpoint(adapter: AdapterPlan, checkpoint: Files) -> None:
    """Raises GraftError where the disk has no room for it."""
    folder = training_folder(adapter.out)
    try:
        with write_folder_whole(folder) as staging:
            write_files(checkpoint, staging)
    except OSError as error:
        raise GraftError(f"The checkpoint {folder} can't be written ({error.strerror}). Make room there.") from None
