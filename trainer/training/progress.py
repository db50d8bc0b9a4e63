"""Progress on the terminal: a bar an adapter, with loss, tokens/s, time left, peak memory and its latest score.

Where the output is no terminal (a log, CI), one line for all of them every few seconds says how far they are.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from graft.hub.evaluation.metrics import Score
from graft.hub.machine.bytes_text import bytes_text
from graft.trainer.learners.learner import Learner
from graft.trainer.process.memory import peak_bytes

_SMOOTHING = 0.9  # of the loss that is shown
_LINE_EVERY_S = 15.0  # without a terminal


class Bars:
    """A watcher that draws; use as a context."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),  # names are the user's own
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
        )
        self._console = console
        self._started = self._told = time.monotonic()
        self._tasks: dict[int, TaskID] = {}  # by learner, as all of these: two may bear the same name
        self._loss: dict[int, float] = {}
        self._score: dict[int, str] = {}
        self._seconds: dict[int, float] = {}
        self._finishing: set[int] = set()  # trained, now scored and saved
        self._learners: list[Learner] = []  # kept, so that no id is used twice

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._finishing.clear()
        for learner in self._learners:
            self._show(learner)
        self._progress.stop()

    def stepped(self, learner: Learner, seconds: float) -> None:
        key, progress = id(learner), learner.progress
        self._seconds[key] = self._seconds.get(key, 0.0) + seconds
        if progress.history:
            latest = progress.history[-1]["loss"]
            self._loss[key] = _SMOOTHING * self._loss.get(key, latest) + (1 - _SMOOTHING) * latest
        self._show(learner)

    def evaluated(self, learner: Learner, score: Score) -> None:
        self._score[id(learner)] = f"{score.metric} {score.value:.3f}"
        if learner.done:
            self._finishing.discard(id(learner))
        self._show(learner)

    def round_ended(self, learners: list[Learner]) -> None:
        """After the last round all are scored and saved, which may take as long as the training."""
        if all(learner.done for learner in learners):
            self._finishing |= {id(learner) for learner in learners if not learner.progress.diverged}
            for learner in learners:
                self._show(learner)
        if not self._console.is_terminal and time.monotonic() - self._told > _LINE_EVERY_S:
            self._told = time.monotonic()
            self._console.print(self._line(), markup=False, highlight=False, soft_wrap=True)

    def _show(self, learner: Learner) -> None:
        key, progress = id(learner), learner.progress
        if key not in self._tasks:
            self._learners.append(learner)
            self._tasks[key] = self._progress.add_task(learner.name, total=learner.total_steps, facts="")
        facts = "  ".join(fact for fact in self._facts(learner) if fact)
        self._progress.update(self._tasks[key], completed=progress.step, facts=facts)

    def _line(self) -> str:
        """All adapters at once: how far, the least and the greatest loss, and the time that is left."""
        done, total = (sum(getattr(task, name) for task in self._progress.tasks) for name in ("completed", "total"))
        losses = sorted(self._loss.values())
        shown = f"loss {losses[0]:.3f} to {losses[-1]:.3f}" if losses else ""
        if done == total:
            return f"{done:.0f} of {total:.0f} steps  {shown}  scoring and saving"
        left = (time.monotonic() - self._started) * (total - done) / max(done, 1)
        return f"{done:.0f} of {total:.0f} steps of {len(self._tasks)} adapters  {shown}  {left:.0f} s left"

    def _facts(self, learner: Learner) -> list[str]:
        key, progress = id(learner), learner.progress
        speed = progress.tokens / self._seconds[key] if self._seconds.get(key) else 0.0
        return [
            f"loss {self._loss[key]:.3f}" if key in self._loss else "",
            f"{speed:,.0f} tok/s",
            bytes_text(peak_bytes(learner.weights[0].device)),
            self._score.get(key, ""),
            "scoring and saving" if key in self._finishing else "",
            progress.stopped or "",
        ]
