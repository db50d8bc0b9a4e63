"""What a training will cost, before it is paid: memory and time from the config and a short calibration.

Parameters, masters, gradients and Adam moments follow from the method; activations and time are measured on two
small steps of the real thing and extended to the real batch: both grow linearly with the sequences of a pass.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from graft.hub.adapters.methods import get_method
from graft.hub.base.model import Base
from graft.hub.evaluation.task_data import load_examples
from graft.trainer.data.sequences import TokenSequence, sequences_of
from graft.trainer.forward.checkpointing import recompute_layers
from graft.trainer.learners.adapter import AdapterLearner
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import RunConfig
from graft.trainer.plan.plan import BASELINES, AdapterPlan
from graft.trainer.process.memory import peak_bytes, restart_peak
from graft.trainer.training.base_weights import make_baseline
from graft.trainer.training.loop import step_on

_FLOAT = 4  # bytes: masters, gradients and both moments are float32
_SMALL = (1, 3)  # sequences of the two calibration steps
_WARM_UP, _TIMED = 1, 2  # steps


@dataclass(frozen=True)
class Cost:
    """Bytes and seconds of one method's training. `peak_bytes`: of the process (CPU) or the device (CUDA)."""

    method: str
    trained_parameters: int
    share: float  # of the base's parameters
    artifact_bytes: int
    base_bytes: int
    master_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int  # of one pass, with everything that is alive for a moment only
    peak_bytes: int
    seconds_per_step: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class FullFineTuning:
    """The lecture's arithmetic for training every weight in float32 with AdamW, without activations."""

    weights_bytes: int
    gradient_bytes: int
    moments_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.gradient_bytes + self.moments_bytes


def full_fine_tuning(parameters: int) -> FullFineTuning:
    """Weights, one gradient and two Adam moments a parameter."""
    return FullFineTuning(_FLOAT * parameters, _FLOAT * parameters, 2 * _FLOAT * parameters)


def estimate(base: Base, plan: AdapterPlan, run: RunConfig, *, length: int, learned: int, steps: int) -> Cost:
    """The cost of `steps` steps over sequences of `length` tokens, of which `learned` carry a loss.

    Runs a few small steps on `base` (a baseline changes it). Raises GraftError for a plan that can't be trained.
    """
    sequence = TokenSequence(tuple(1 + i % 100 for i in range(length)), length - learned)
    learner = _learner(base, plan, sequence)
    full = plan.recipe.batch_size
    per_pass = max(1, min(full, (run.rows_per_pass - learner.virtual) // (length - 1)))
    restart_peak(base.device)
    with recompute_layers(base, run.checkpoint_layers, [learner.dropout]):
        points = [_calibrate(base, learner, sequence, count, run) for count in _SMALL]
    (few, low_peak, low_seconds), (more, high_peak, high_seconds) = points
    slope = max(0, high_peak - low_peak) / (more - few)
    peak = round(low_peak + slope * (per_pass - few))
    seconds = max(low_seconds, low_seconds + (high_seconds - low_seconds) / (more - few) * (full - few))
    parameters = learner.trained_parameters
    return Cost(
        method=plan.method,
        trained_parameters=parameters,
        share=parameters / base.spec.parameters,
        artifact_bytes=_artifact_bytes(base, plan, parameters),
        base_bytes=sum(p.numel() * p.element_size() for p in base.model.parameters()),
        master_bytes=_FLOAT * parameters,
        gradient_bytes=_FLOAT * parameters,
        optimizer_bytes=2 * _FLOAT * parameters,
        activation_bytes=round(slope * per_pass),
        peak_bytes=peak,
        seconds_per_step=seconds,
        steps=steps,
        seconds=seconds * steps,
    )


def _learner(base: Base, plan: AdapterPlan, sequence: TokenSequence) -> Learner:
    if plan.method in BASELINES:
        return make_baseline(base, plan, [sequence])
    method = get_method(plan.method)
    config = method.from_options(plan.options, base.spec)
    return AdapterLearner(plan.method, method, config, plan.recipe, [sequence], [], base)


def _calibrate(
    base: Base, learner: Learner, sequence: TokenSequence, count: int, run: RunConfig
) -> tuple[int, int, float]:
    """(sequences, peak bytes, seconds) of a step with `count` sequences."""
    batch = [[sequence] * count]
    for _ in range(_WARM_UP):
        step_on(base, [learner], batch, run)
    started = time.monotonic()
    for _ in range(_TIMED):
        step_on(base, [learner], batch, run)
    return count, peak_bytes(base.device), (time.monotonic() - started) / _TIMED


def _artifact_bytes(base: Base, plan: AdapterPlan, parameters: int) -> int:
    if plan.method in BASELINES:
        return parameters * base.model.dtype.itemsize
    method = get_method(plan.method)
    shapes = method.shapes(method.from_options(plan.options, base.spec), base.spec)
    return sum(_FLOAT * math.prod(shape) for shape in shapes.values())


def lengths_of(data: Path, base: Base, limit: int, batch_size: int) -> tuple[int, int, int]:
    """(tokens, learned tokens) of a sequence in the data's longest batch, and the number of examples."""
    sequences = sorted(sequences_of(load_examples(data), base.tokenizer, limit), key=lambda s: len(s.ids))
    longest = sequences[-batch_size:]
    tokens = sum(len(sequence.ids) for sequence in longest) / len(longest)
    learned = sum(sequence.learned for sequence in longest) / len(longest)
    return round(tokens), max(1, round(learned)), len(sequences)
