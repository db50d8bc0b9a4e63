"""How many rows a step has: as many as hold others' tokens up for HELD_S at most, by how fast the steps before were.

Few rows make short steps, so that nobody's next token waits long for somebody else's prompt; many make a prompt end in fewer
steps, each of which computes the others' tokens as well. What is right for a small base on a fast machine would hold everybody
up for half a minute where a base of some billion parameters runs on a few cores.
"""

HELD_S = 0.75
_FROM_ROWS = 128  # in smaller steps it is reading the weights that takes the time
_KEPT = 0.5  # what a measurement counts when the next one comes


class StepPace:
    """`rows`: of the next step, between `least` and `most`. It begins with the least."""

    def __init__(self, least: int, most: int):
        self.rows = least
        self._least, self._most = least, most
        self._measured_rows = self._measured_s = 0.0

    def took(self, rows: int, seconds: float) -> None:
        """A step that worked through prompts, with all of its rows, was computed in so many seconds."""
        if rows < min(_FROM_ROWS, self._least):
            return
        self._measured_rows = rows + _KEPT * self._measured_rows
        self._measured_s = seconds + _KEPT * self._measured_s
        held = HELD_S * self._measured_rows / max(self._measured_s, 1e-9)
        self.rows = int(min(max(held, self._least), self._most))
