"""One request's way through its constraint: which tokens may come next."""

from llguidance import LLMatcher

from graft.hub.errors import GraftError
from graft.server.errors import ConstraintFailedError
from graft.server.structured.vocabulary import Mask, Vocabulary


class Matcher:
    """Belongs to the engine's thread, and from `MaskThread.begin` on, until it is ready, to the masks'.

    `allowed` is for a draw while it is `ready`. `holds_end`: a text that is complete ends only where nothing else may come.
    """

    def __init__(
        self, state: LLMatcher, first: Mask, vocabulary: Vocabulary, ends: frozenset[int], holds_end: bool = False
    ):
        """`first`: what may come first. `ends`: all ids that end this request's text."""
        self.state = state
        self.ready = True  # no token is to be looked at
        self.begun = False  # ... but it is on its way
        self.late = False  # it was not ready when a token was to be drawn
        self.alone = False  # it once held others up: from now on its masks are made after theirs
        self.error: GraftError | None = None
        self.allowed = first.copy()
        self.token: int | None = None  # drawn, and not yet looked at
        self._vocabulary = vocabulary
        self._ends = vocabulary.mask(ends)
        self._closers = vocabulary.mask(
            frozenset(id for id in ends if id in vocabulary.ends or vocabulary.tokens.is_special_token(id))
        )
        self._holds_end = holds_end
        self._finish()

    def take(self, token: int, *, holds_end: bool = False) -> None:
        """A token has been drawn that does not end the text."""
        self.token, self._holds_end = token, holds_end
        self.ready = False

    def consume(self) -> None:
        """Look at the token."""
        if self.token is not None:
            self.state.consume_token(self.token)
            self.token = None

    def show(self, mask: Mask) -> None:
        """The library's mask for the present place, all tokens looked at."""
        self.allowed[:] = mask
        self._finish()

    def _finish(self) -> None:
        """Make the library's mask this request's own. Raises nothing."""
        if self.state.is_error():
            self.error = ConstraintFailedError(_first_line(self.state.get_error()))
            return
        if not (self.allowed & self._closers).any():
            return
        if not self.state.is_accepting():
            self.error = ConstraintFailedError("no token of this base can go on from here")
            return
        others = self.allowed & ~self._ends
        if self._holds_end and others.any():
            self.allowed[:] = others
        else:
            self.allowed |= self._closers


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else "it can't go on"
