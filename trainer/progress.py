"""Progress on the terminal: a bar an adapter, with loss, tokens/s, time left and its latest score.

Where the output is no terminal (a log, CI), a line every few seconds says the same.
"""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from graft.hub.metrics import Score
from graft.trainer.learner import Learner

_SMOOTHING = 0.9  # of the loss that is shown
_LINE_EVERY_S = 15.0  # without a terminal


class Bars:
    """A watcher that draws; use as a context."""

    def __init__(self, console: Console):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._console = console
        self._told = time.monotonic()
        self._tasks: dict[str, int] = {}
        self._loss: dict[str, float] = {}
        self._score: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def stepped(self, learner: Learner, seconds: float) -> None:
        name, progress = learner.name, learner.progress
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        if progress.history:
            latest = progress.history[-1]["loss"]
            self._loss[name] = _SMOOTHING * self._loss.get(name, latest) + (1 - _SMOOTHING) * latest
        self._show(learner)

    def evaluated(self, learner: Learner, score: Score) -> None:
        self._score[learner.name] = f"{score.metric} {score.value:.3f}"
        self._show(learner)

    def round_ended(self, learners: list[Learner]) -> None:
        pass

    def _show(self, learner: Learner) -> None:
        name, progress = learner.name, learner.progress
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=learner.total_steps, facts="")
        speed = progress.tokens / self._seconds[name] if self._seconds.get(name) else 0.0
        facts = [f"loss {self._loss.get(name, float('nan')):.3f}", f"{speed:,.0f} tok/s", self._score.get(name, "")]
        if progress.stopped:
            facts.append(progress.stopped)
        self._progress.update(
            self._tasks[name], completed=progress.step, facts="  ".join(fact for fact in facts if fact)
        )
        if not self._console.is_terminal and time.monotonic() - self._told > _LINE_EVERY_S:
            self._told = time.monotonic()
            for task in self._progress.tasks:
                line = f"{task.description}  step {task.completed:.0f}/{task.total:.0f}  {task.fields['facts']}"
                self._console.print(line, highlight=False, soft_wrap=True)
