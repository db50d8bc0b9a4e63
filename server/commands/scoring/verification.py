"""`graft eval --verify ID`: a recorded evaluation run again, from the hashes that it was recorded with.

Torch and the base are imported when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graft.hub.errors import BaseMismatchError, ConflictError, DataError, GraftError
from graft.hub.evaluation.metrics import get_metric, hash_predictions
from graft.hub.terminal.tables import print_json

if TYPE_CHECKING:
    from graft.hub.base.model import Base
    from graft.hub.evaluation.task_data import Example
    from graft.hub.registry.interface import AnyRegistry
    from graft.hub.registry.leaderboard import Evaluation
    from graft.server.commands.scoring.contest import BaseAsked
    from graft.server.evaluation.evaluate import Evaluated

CLOSE = 1e-9  # values of equal answers


def engine_name(device: str, dtype: str) -> str:
    """What an evaluation says it was measured by: graft's version, the device (cpu, cuda) and the dtype."""
    from importlib.metadata import version

    return f"graft {version('grafthub')} {device} {dtype}"


def engine_on(base: Base) -> str:
    """Such a name, of an engine in this process."""
    return engine_name(base.device.type, base.dtype_name)


def read_data(path: Path) -> bytes:
    """Raises DataError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None


def first_examples(raw: bytes, name: str, limit: int | None) -> tuple[list[Example], str]:
    """The first examples, and the hash of just these."""
    from graft.hub.evaluation.task_data import data_hash, parse_examples

    examples = parse_examples(raw, name)
    chosen = examples[:limit]
    return chosen, hashlib.sha256(raw).hexdigest() if len(chosen) == len(examples) else data_hash(chosen)


def verify(
    registry: AnyRegistry,
    kept: Evaluation,
    asked: BaseAsked,
    data: Path | None,
    limit: int | None,
    say: Callable[[str], None],
    *,
    as_json: bool,
) -> None:
    """Run `kept` again and say whether it comes out the same.

    Raises GraftError where it differs, or can't be run again: other data, another base, other weights.
    """
    raw = read_data(data) if data else registry.task_data(kept.task, kept.data_hash)
    examples, digest = first_examples(raw, str(data or f"the evaluation set of {kept.task}"), limit)
    if digest != kept.data_hash:
        raise ConflictError(
            f"Evaluation {kept.id} was measured on the data {kept.data_hash[:12]}, and these are {digest[:12]}: give the "
            "file and the --limit of then."
        )
    _require_weights(registry, kept)
    base = _load_base(kept, asked, say)
    again = _run(registry, kept, base, examples)
    answers = hash_predictions(again.predictions)
    close = abs(again.score.value - kept.value) <= CLOSE
    same = close and kept.predictions_hash in (None, answers)
    if as_json:
        facts = {"id": kept.id, "same": same, "engine": engine_on(base), "predictions_hash": answers}
        print_json(facts | {"recorded": kept.value, "value": again.score.value})
    what = f"{kept.metric} {again.score.value:.6g} of {kept.repo or 'the bare base'}, recorded {kept.value:.6g}"
    if not same:
        answered = "" if not close or kept.predictions_hash is None else ", from other answers"
        raise GraftError(
            f"Evaluation {kept.id} differs: {what}{answered} (measured by {kept.engine}, now {engine_on(base)})."
        )
    unseen = "; its answers were not recorded, and could not be compared" if kept.predictions_hash is None else ""
    say(f"Evaluation {kept.id} is the same: {what}{unseen}.")


def _require_weights(registry: AnyRegistry, kept: Evaluation) -> None:
    if kept.repo is not None and registry.resolve(f"{kept.repo}@{kept.revision}").digest != kept.digest:
        raise ConflictError(
            f"{kept.repo}@{kept.revision} no longer holds the weights {kept.digest} that were measured."
        )


def _load_base(kept: Evaluation, asked: BaseAsked, say: Callable[[str], None]) -> Base:
    """The base as it was loaded then, unless it is asked for otherwise. Raises BaseMismatchError for another one."""
    say(f"Loading {asked.folder} ...")  # torch takes its seconds, too

    from graft.server.commands.scoring.machinery import load_asked

    match kept.engine.split():
        case ["graft", _, device, dtype]:
            asked = replace(asked, device=asked.device or device, dtype=asked.dtype or dtype)
    base = load_asked(asked, say)
    if kept.base_fingerprint not in (None, base.spec.fingerprint):
        raise BaseMismatchError(
            f"Evaluation {kept.id} was measured on the base {kept.base_fingerprint}, and {asked.folder} holds "
            f"{base.spec.fingerprint}: give the base of then."
        )
    return base


class _Refusals:
    """Listens to a run for what could not be served."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def loaded(self, systems: int) -> None: ...

    def refused(self, model: str, why: str) -> None:
        self.reasons.append(why)

    def scored(self, system: Evaluated) -> None: ...

    def answered(self, done: int, total: int) -> None: ...


def _run(registry: AnyRegistry, kept: Evaluation, base: Base, examples: list[Example]) -> Evaluated:
    """The system that `kept` is of, scored anew. Raises GraftError where it can't be served."""
    from graft.server.commands.scoring.machinery import EVALUATING
    from graft.server.engine.client import EngineClient
    from graft.server.engine.engine import Engine
    from graft.server.evaluation.evaluate import evaluate

    models = [] if kept.repo is None else [f"{kept.repo}@{kept.revision}"]
    refusals = _Refusals()
    with Engine(base, shelf=registry, options=EVALUATING) as engine:
        done = evaluate(EngineClient(engine), models, examples, get_metric(kept.metric), refusals)
    if refusals.reasons:
        raise GraftError(f"{kept.repo} can't be served: {refusals.reasons[0]}")
    return done.systems[-1]
