"""From what a request shows as its key to whoever holds it: a key file, a hub's tokens, or both. Torch-free."""

from typing import Protocol

from graft.server.errors import InvalidKeyError
from graft.server.keys.holders import Holder, Profile
from graft.server.keys.key_file import KEY_PREFIX, KeyFile

MAX_KEY_CHARS = 1000
_UNKNOWN = "This key is wrong, has expired or was revoked."


class TokenHolders(Protocol):
    """Who holds a hub's tokens (hub_tokens.py)."""

    def holder(self, token: str, profile: Profile) -> Holder:
        """Raises InvalidKeyError."""


class Keyring:
    """`file`: without one every token of the hub is good for everything that its bearer may read. Safe for many threads."""

    def __init__(self, file: KeyFile | None, hub: TokenHolders | None):
        self._file = file
        self._hub = hub

    @property
    def problem(self) -> str | None:
        """Why other keys hold than the file has now; None where they are the same."""
        return self._file.problem if self._file is not None else None

    @property
    def asks_hub(self) -> bool:
        """Whether a look-up may take a network."""
        return self._hub is not None

    def holder(self, key: str) -> Holder:
        """Raises InvalidKeyError for a key that is no good, GraftError where that can't be found out."""
        if len(key) > MAX_KEY_CHARS:
            raise InvalidKeyError(_UNKNOWN)
        profile: Profile | None = Profile()
        if self._file is not None:
            book = self._file.book()
            if (holder := book.find(key)) is not None:
                return holder
            profile = book.hub
        if self._hub is None or profile is None or key.startswith(KEY_PREFIX):  # our own go to no hub
            raise InvalidKeyError(_UNKNOWN)
        return self._hub.holder(key, profile)
