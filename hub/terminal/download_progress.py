"""What is seen of a download: a bar of all packages on a terminal, a line a package elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from graft.hub.machine.wheels import Package


class Download:
    """Told how much of each package is there; use as a context."""

    def __init__(self, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._console = console
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
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
