"""What training is timed by where its dtype is to be chosen (hub/base/dtype_choice.py): a step of a small LoRA."""

from collections.abc import Iterator
from contextlib import contextmanager

from graft.hub.adapters.methods import get_method
from graft.hub.base.dtype_choice import Cases, TimedWork
from graft.hub.base.model import Base
from graft.trainer.data.sequences import TokenSequence
from graft.trainer.learners.adapter import AdapterLearner
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.training.loop import step_on

_TOKENS, _SEQUENCES = 64, 4


@contextmanager
def _cases(base: Base) -> Iterator[Cases]:
    method = get_method("lora")
    config = method.from_options({}, base.spec)
    sequence = TokenSequence(tuple(1 + i % 100 for i in range(min(_TOKENS, base.spec.max_positions))), 1)
    learner = AdapterLearner("speed", method, config, TrainConfig(steps=1000), [sequence], [], base)
    yield {"a step": lambda: step_on(base, [learner], [[sequence] * _SEQUENCES], RunConfig())}


TRAINING = TimedWork("training", (_TOKENS, _SEQUENCES), _cases)
