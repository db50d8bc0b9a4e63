"""From a constraint to a matcher, on threads of its own: what takes long to compile holds up who asked for it alone."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits
from packaging.version import Version

from graft.hub.errors import GraftError
from graft.server.errors import BrokenError, ConstraintError
from graft.server.leaving import LEAVE_S
from graft.server.structured.constraint import Constraint
from graft.server.structured.grammar import write_grammar
from graft.server.structured.matcher import Matcher
from graft.server.structured.vocabulary import Mask, Vocabulary, read_vocabulary
from graft.server.work_pool import WorkPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
MAX_CHARS = 256 * 1024  # of a constraint's texts
MAX_FIRST_S = 0.5  # of a core, in which the tokens that may come first are found; later steps are as hard
MAX_S = 5.0  # until the client is told that it takes too long; what was begun goes on
KEPT = 256  # compiled constraints
KEPT_CHARS = 16 * MAX_CHARS  # of all their texts: a compiled one grows with its text
_INSTALLED, _LEAST = version("llguidance"), "1.9.1"  # earlier ones make something else of some grammars
_THREADS = 2
_MOST_SAID = 400  # characters of the library's reason


@dataclass(frozen=True)
class Compiled:
    """A constraint's beginning, never moved on, and the tokens that may come first."""

    state: LLMatcher
    first: Mask


class Compiler:
    """For one base's vocabulary, which is read with the first constraint. Safe for many threads."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase | None", vocab_size: int, ends: frozenset[int]):
        self._source = tokenizer, vocab_size, ends
        self._pool = WorkPool("graft-constraints", _THREADS)
        self._reading = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, Compiled | ConstraintError] = OrderedDict()
        # Those under way -> who waits: a client's thousand choices are one job. Each client has its own, which comes in its turn.
        self._waiting: dict[tuple[str, Constraint], list[Callable[[Compiled | GraftError], None]]] = {}

    def request(
        self,
        constraint: Constraint,
        ends: frozenset[int],
        client: str,
        done: Callable[[Matcher | GraftError], None],
        *,
        holds_end: bool = False,
    ) -> None:
        """Have `done` told a matcher for a text that `ends` end, here or on another thread, or a ConstraintError; after `close`
        a ClosedError. Raises ConstraintError for a constraint that is too long to look at, or any where the library is too old.
        """
        if Version(_INSTALLED) < Version(_LEAST):
            raise ConstraintError(
                f"Texts can't be held to formats here: that takes llguidance {_LEAST}, and {_INSTALLED} is installed. Install the "
                f"newer one, or serve from an environment without vLLM."
            )
        chars = sum(len(text) for text in _texts(constraint))
        if chars > MAX_CHARS:
            raise ConstraintError(f"The constraint has {chars} characters; this server takes up to {MAX_CHARS}.")

        def give(made: Compiled | GraftError) -> None:
            answer: Matcher | GraftError
            try:
                answer = self._answer(made, ends, holds_end)
            except BaseException as error:  # the library's panics are no Exceptions
                answer = _broken(error)
            done(answer)

        with self._lock:
            made = self._find(constraint)
            waiting = self._waiting.setdefault((client, constraint), []) if made is None else []
            waiting.append(give)
        if made is not None:
            give(made)
        elif len(waiting) == 1:
            self._begin(constraint, client)

    def _begin(self, constraint: Constraint, client: str) -> None:
        """Compile it in the client's turn, and tell all of the client's who wait for it."""
        once = _Once(partial(self._tell, client, constraint))
        too_long = ConstraintError(f"The constraint could not be compiled within {MAX_S:.0f} seconds.")
        unread = self._vocabulary is None  # reading it takes its time, whatever the constraint

        def work() -> None:
            if unread:
                self._read()
                once.after(MAX_S, too_long)
            with self._lock:
                made = self._find(constraint)
            once(made or self._compile(constraint))

        try:
            self._pool.submit(client, work, once)
            if not unread:
                once.after(MAX_S, too_long)
        except GraftError as error:
            once(error)
        except Exception as error:  # a timer is a thread too, and the system may allow no more
            once(_broken(error))

    def close(self, wait_s: float = LEAVE_S) -> None:
        self._pool.close(wait_s)

    def _tell(self, client: str, constraint: Constraint, made: Compiled | GraftError) -> None:
        with self._lock:
            waiting = self._waiting.pop((client, constraint), [])
        for give in waiting:
            try:
                give(made)
            except BaseException:  # the others wait still
                log.exception("nobody could be told that a constraint is compiled")

    def _answer(self, made: Compiled | GraftError, ends: frozenset[int], holds_end: bool) -> Matcher | GraftError:
        """One's own, of what was made for all who wait for it."""
        if isinstance(made, Compiled):
            assert self._vocabulary is not None  # by which it was compiled
            return Matcher(made.state.deep_copy(), made.first, self._vocabulary, ends, holds_end)
        # Who gets it may write the field's name into it.
        return ConstraintError(str(made)) if isinstance(made, ConstraintError) else made

    def _find(self, constraint: Constraint) -> Compiled | ConstraintError | None:
        """With the lock."""
        if constraint in self._kept:
            self._kept.move_to_end(constraint)
        return self._kept.get(constraint)

    def _compile(self, constraint: Constraint) -> Compiled | ConstraintError:
        made: Compiled | ConstraintError
        try:
            made = self._compiled(constraint)
        except ConstraintError as error:
            made = error
        with self._lock:
            self._kept[constraint] = made
            while len(self._kept) > KEPT or self._chars() > KEPT_CHARS:
                self._kept.popitem(last=False)
        return made

    def _chars(self) -> int:
        return sum(len(text) for constraint in self._kept for text in _texts(constraint))

    def _read(self) -> Vocabulary:
        with self._reading:
            self._vocabulary = self._vocabulary or read_vocabulary(*self._source)
            return self._vocabulary

    def _compiled(self, constraint: Constraint) -> Compiled:
        vocabulary = self._read()
        grammar = write_grammar(constraint, vocabulary.special)
        state = LLMatcher(vocabulary.tokens, grammar, log_level=0, limits=_limits())
        began = time.thread_time()  # whoever else uses the cores
        first = np.zeros(vocabulary.words, np.uint32)
        if not state.is_error():
            state.unsafe_compute_mask_ptr(first.ctypes.data, first.nbytes)
        if state.is_error():
            raise ConstraintError(f"The constraint can't be compiled: {_reason(state.get_error())}")
        if time.thread_time() - began > MAX_FIRST_S:
            raise ConstraintError("The constraint is too hard to follow: make its patterns simpler.")
        return Compiled(state, first)


class _Once:
    """Tells the first answer and no other."""

    def __init__(self, tell: Callable[[Compiled | GraftError], None]):
        self._tell = tell
        self._told = threading.Lock()
        self._timer: threading.Timer | None = None

    def __call__(self, answer: Compiled | GraftError) -> None:
        if self._told.acquire(blocking=False):
            if self._timer is not None:
                self._timer.cancel()
            self._tell(answer)

    def after(self, seconds: float, answer: GraftError) -> None:
        """Tell this if there is no other until then."""
        self._timer = threading.Timer(seconds, self, (answer,))
        self._timer.daemon = True
        self._timer.start()
        if self._told.locked():
            self._timer.cancel()


def _broken(error: BaseException) -> BrokenError:
    """While a failure is handled that should not have been: what who waits is told, and the log."""
    log.exception("a constraint could not be compiled")
    return BrokenError(f"The constraint could not be compiled: {type(error).__name__}: {error}")


def _limits() -> LLParserLimits:
    """Half of the library's own or less: a grammar that needs more would hold a core for half a second a token."""
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _reason(error: str) -> str:
    """What the library says, without its state and the grammar."""
    said = " ".join(error.partition("\n<")[0].split())
    return "no text meets it." if said.startswith("NoExtension") else said[:_MOST_SAID]


def _texts(part: object) -> Iterator[str]:
    """All texts within a constraint."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, tuple):
        for one in part:
            yield from _texts(one)
    elif is_dataclass(part):
        for each in fields(part):
            yield from _texts(getattr(part, each.name))
