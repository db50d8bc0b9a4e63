"""TensorBoard logs of a run: one run an adapter, so that all of a plan lie over one another in one chart."""

from pathlib import Path
from typing import TYPE_CHECKING

from graft.hub.errors import GraftError
from graft.hub.evaluation.metrics import Score
from graft.trainer.learners.learner import Learner
from graft.trainer.process.memory import peak_bytes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """A watcher that writes event files below `folder`; use as a context. Raises GraftError without the package."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise GraftError(
                "--tensorboard needs the package tensorboard: pip install tensorboard, or leave it out."
            ) from None
        self._folder, self._new_writer = folder, SummaryWriter
        self._writers: dict[int, SummaryWriter] = {}  # by learner: two may bear the same name
        self._tokens: dict[int, int] = {}

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def stepped(self, learner: Learner, seconds: float) -> None:
        progress = learner.progress
        if not progress.history or progress.diverged:
            return
        latest = progress.history[-1]
        before = self._tokens.get(id(learner), progress.tokens if progress.step > 1 else 0)  # resumed: unknown
        self._tokens[id(learner)] = progress.tokens
        values = {
            "train/loss": latest["loss"],
            "train/learning_rate": latest["rate"],
            "train/gradient_norm": latest["grad_norm"],
            "train/tokens_per_second": (progress.tokens - before) / seconds,
            "train/peak_memory_bytes": peak_bytes(learner.weights[0].device),
        }
        for key, value in values.items():
            self._writer(learner).add_scalar(key, value, progress.step)

    def evaluated(self, learner: Learner, score: Score) -> None:
        self._writer(learner).add_scalar(f"eval/{score.metric}", score.value, learner.progress.step)

    def round_ended(self, learners: list[Learner]) -> None:
        pass

    def _writer(self, learner: Learner) -> "SummaryWriter":
        if id(learner) not in self._writers:
            taken = {Path(writer.log_dir).name for writer in self._writers.values()}
            name = learner.name.replace("/", "-")  # one folder, and below this one
            name = name if name not in taken else f"{name}-{len(taken)}"
            self._writers[id(learner)] = self._new_writer(str(self._folder / name))
        return self._writers[id(learner)]
