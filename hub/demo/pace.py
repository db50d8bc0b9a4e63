"""How long is left: from what this run has measured on this machine, never from a constant."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StageWork:
    """What a stage takes: letters of text to train on and to read, starts of commands with torch and without."""

    trained: float = 0
    read: float = 0
    heavy: int = 0
    light: int = 0

    def __add__(self, other: "StageWork") -> "StageWork":
        return StageWork(
            self.trained + other.trained, self.read + other.read, self.heavy + other.heavy, self.light + other.light
        )


@dataclass(frozen=True)
class Pace:
    """This machine's, as far as it is known; None: nothing has shown it yet."""

    letters_per_s: float | None = None  # trained on
    heavy_s: float | None = None  # to start a command that loads torch and the base
    light_s: float | None = None  # a command that does not

    def seconds(self, work: StageWork) -> float | None:
        """For so much work. Reading is half of training, which computes forward and backward; None: not known yet."""
        if self.letters_per_s is None or self.heavy_s is None or self.light_s is None:
            return None
        return (
            (work.trained + work.read / 2) / self.letters_per_s + work.heavy * self.heavy_s + work.light * self.light_s
        )

    def learn(self, **measured: float) -> "Pace":
        return replace(self, **{key: value for key, value in measured.items() if value > 0})


def duration_words(seconds: float) -> str:
    """As people say it: 40 s, 3 min 20 s."""
    rounded = max(5, 5 * round(seconds / 5))
    minutes, rest = divmod(rounded, 60)
    return f"{rest} s" if not minutes else f"{minutes} min {rest} s" if rest else f"{minutes} min"
