"""A request that is being answered, in the eyes of its key's limits: it enters, sets tokens aside, and leaves with what it used. Torch-free."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from graft.hub.errors import GraftError
from graft.server.keys.accounts import AnyAccounts
from graft.server.keys.holders import Holder
from graft.server.keys.standing import RateLimitError, Standing
from graft.server.keys.usage import Usage


class Visit:
    """Used by one thread. `client`: who is served in turn, by `weight`."""

    def __init__(self, accounts: AnyAccounts, holder: Holder, client: str):
        self.client = client
        self.weight = holder.profile.weight
        self.key = holder.name
        self.standing = Standing()
        self._accounts = accounts
        self._limits = holder.profile.limits
        self._reserved = 0
        self._used: Usage | None = None

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Raises RateLimitError at the beginning."""
        try:
            self.standing = self._accounts.enter(self.key, self._limits)
        except RateLimitError as error:
            self.standing = error.standing
            raise
        try:
            yield
        finally:
            self._accounts.leave(self.key, self._limits, self._reserved, self._used)

    def reserve(self, tokens: int) -> None:
        """Tokens that it may use. Raises RateLimitError, or AboveLimitError where that can never be."""
        try:
            self.standing = self._accounts.reserve(self.key, self._limits, tokens)
        except RateLimitError as error:
            self.standing = error.standing
            raise
        self._reserved += tokens

    def look(self) -> None:
        """See how the key stands where nothing begins, as far as that can be told: a refusal's headers have it, too."""
        with suppress(GraftError):
            self.reserve(0)

    def use(self, usage: Usage) -> None:
        """What it has used in all; the rest of what it has reserved is given back when it leaves."""
        self._used = usage
