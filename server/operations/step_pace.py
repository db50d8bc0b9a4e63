"""How many rows a step has: as many as hold others' tokens up for HELD_S at most, by how fast the steps before were.

Few rows make short steps, so that nobody's next token waits long for somebody else's prompt; many make a prompt end in fewer
steps, each of which computes the others' tokens as well. What is right for a small base on a fast machine would hold everybody
up for half a minute where a base of some billion parameters runs on a few cores.
"""

HELD_S = 0.75
_FROM_ROWS = 128  # in smaller steps it is reading the weights that takes the time
_KEPT = 0.5  # what a measurement counts when the next one comes
_LEAST_SHARE = 0.25  # of a step with prompts is theirs, whatever the steps without took


class StepPace:
    """`rows`: of the next step, between `least` and `most`. It begins with the least. For one thread."""

    def __init__(self, least: int, most: int):
        self.rows = self.least = least
        self._most = most
        self._others_s = 0.0  # what a step takes without prompts
        self._rows = self._prompts_s = 0.0  # of steps with prompts: all rows, and what they took beyond that

    def took(self, rows: int, seconds: float, *, prompts: bool) -> None:
        """A step was computed in so many seconds. `prompts`: were worked through in it.

        Where others' tokens alone take long, prompts may take as long again: with what is left of HELD_S they would never end.
        """
        if not prompts:
            self._others_s += (1 - _KEPT) * (seconds - self._others_s)
        elif rows >= min(_FROM_ROWS, self.least):
            self._rows = rows + _KEPT * self._rows
            self._prompts_s = max(seconds - self._others_s, _LEAST_SHARE * seconds) + _KEPT * self._prompts_s
            held = max(HELD_S - self._others_s, self._others_s) * self._rows / max(self._prompts_s, 1e-9)
            self.rows = int(min(max(held, self.least), self._most))
