"""Who asks: a name, what their token is for, and which names they may write under or read in private."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quota:
    """What a user may have stored and may ask for. None: no limit. `requests` are counted per 5 minutes."""

    bytes: int | None = None
    repos: int | None = None
    requests: int | None = None


UNLIMITED = Quota()
DEFAULT_QUOTA = Quota(bytes=500 << 30, repos=100_000, requests=30_000)


@dataclass(frozen=True)
class Caller:
    """`scope` None: nobody in particular. `namespaces` None: all of them.

    `repos`: single ones ("ns/name"), of a token that is limited to them. Both hold names in small letters. `token`: the number
    of the one that was shown; None where none is needed.
    """

    name: str
    scope: str | None
    namespaces: frozenset[str] | None
    repos: frozenset[str] = frozenset()
    quota: Quota = UNLIMITED
    token: int | None = None

    def reaches(self, name: str) -> bool:
        """Whether `name`, a namespace or "ns/name", is the caller's own, as far as their token goes."""
        if self.namespaces is None:
            return True
        name = name.lower()
        return name.partition("/")[0] in self.namespaces or name in self.repos

    @property
    def own_names(self) -> list[str]:
        return sorted((self.namespaces or frozenset()) | self.repos)


OWNER = Caller("owner", "admin", None)
STRANGER = Caller("", None, frozenset())
