"""What is seen of a download: bars on a terminal, elsewhere a line a package, or nothing."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from graft.hub.machine.wheels import Package
from graft.hub.terminal.strangers_words import visible_text


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


class Download:
    """Told how much of each package is there; use as a context."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = _bars(console)
        self._tasks: dict[Package, TaskID] = {}

    def __enter__(self) -> "Download":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, package: Package, size: int) -> None:
        if package not in self._tasks:
            self._tasks[package] = self._progress.add_task(package.name, total=package.size)
            if not self._console.is_terminal:
                self._console.print(f"downloading {package.name} {package.version}", highlight=False)
        self._progress.update(self._tasks[package], completed=size)


class Pull:
    """Told how much of an adapter is there; use as a context."""

    def __init__(self, console: Console, name: str):
        self._progress = _bars(console)
        self._task = self._progress.add_task(visible_text(name), total=None)

    def __enter__(self) -> "Pull":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, came: int, of: int) -> None:
        self._progress.update(self._task, completed=came, total=of)
