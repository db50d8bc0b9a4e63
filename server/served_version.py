"""What a request runs on, as it is told to clients and counted in metrics."""

from dataclasses import dataclass, field

from graft.hub.chat.words import NO_WORDS, AdapterWords


@dataclass(frozen=True)
class Served:
    """What a request runs on. `digest` and the rest are None for the bare base. `words`: the version's own, where it has been
    loaded; versions of one digest may differ in them."""

    name: str | None = None
    digest: str | None = None
    revision: str | None = None
    words: AdapterWords = field(default=NO_WORDS, compare=False, repr=False)


UNPLACED = Served("(not loaded)")  # in the numbers: names that stand for nothing, or for nothing that loads
