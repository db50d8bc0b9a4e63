"""What is kept of keys in one place for all who answer: rates, and what was used. Torch-free.

The one seam for several processes: there is one `Accounts`, where the engine is; whoever answers elsewhere reaches it by these
three calls, whose arguments, results and errors can be sent. Of who has no limits it need only be told the end.
"""

from collections.abc import Callable
from typing import Protocol

from graft.server.keys.holders import UNLIMITED, Limits
from graft.server.keys.rates import Rates
from graft.server.keys.standing import Standing
from graft.server.keys.usage import Usage, UsageFile


class AnyAccounts(Protocol):
    def enter(self, who: str, limits: Limits) -> Standing:
        """A request of a key begins, to be ended by `leave`. Raises RateLimitError; then nothing was counted."""

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        """Tokens that the request may use. Raises RateLimitError, or AboveLimitError where that can never be."""

    def leave(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        """It has ended. `limits`: those by which it entered. `reserved`: all that was. `used`: None where no tokens are counted."""


class Accounts:
    """Safe for many threads. `count`: told of all that was used. `file`: where it is written down, if anywhere."""

    def __init__(self, count: Callable[[Usage], None], file: UsageFile | None = None):
        self._rates = Rates()
        self._count = count
        self._file = file

    def enter(self, who: str, limits: Limits) -> Standing:
        return Standing() if limits == UNLIMITED else self._rates.enter(who, limits)

    def reserve(self, who: str, limits: Limits, tokens: int) -> Standing:
        return Standing() if limits == UNLIMITED else self._rates.reserve(who, limits, tokens)

    def leave(self, who: str, limits: Limits, reserved: int, used: Usage | None) -> None:
        if limits != UNLIMITED:
            self._rates.leave(who, reserved, used.tokens if used else 0)
        if used is not None:
            self._count(used)
            if self._file is not None:
                self._file.write(used)
