"""How the demo speaks: a heading a stage with the time that is left, on a terminal; elsewhere a line a stage."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from graft.hub.demo.pace import Pace, StageWork, duration_words


class Teller:
    """Tells stage by stage, and notes the seconds of each."""

    def __init__(self, console: Console, plan: dict[str, StageWork]):
        """`plan`: every stage to come, in order, with its work."""
        self.console = console
        self.pace = Pace()
        self.seconds: dict[str, float] = {}
        self._left = dict(plan)
        self._stages = list(plan)

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """A stage of the plan, which is over when the block ends."""
        heading = f"[{self._stages.index(name) + 1}/{len(self._stages)}] {text}{self._time_left(name)}"
        if self.console.is_terminal:
            self.console.rule(Text(heading, style="bold"), align="left")
        else:
            self.say(heading)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        del self._left[name]

    def _time_left(self, name: str) -> str:
        this, whole = self.pace.seconds(self._left[name]), self.pace.seconds(sum(self._left.values(), StageWork()))
        if this is None or whole is None:
            return ""
        return f"  (about {duration_words(this)}; to the end about {duration_words(whole)})"

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """The title is a line of its own: a table would break it at its own width."""
        self.say(title)
        table = Table()
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        self.console.print(table)
