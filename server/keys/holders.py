"""Who shows a key, and what it is good for: adapters, limits, a share of the machine. Torch-free; knows no HTTP."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

EVERYTHING = "*"
_ALL_OF = "/*"  # after a namespace
_ALL_TASKS = "task:*"
_TASK = "task:"


@dataclass(frozen=True)
class Limits:
    """None: no limit. `requests` and `tokens` (of prompts and answers) in any 60 seconds, `concurrency` at once."""

    requests: int | None = None
    tokens: int | None = None
    concurrency: int | None = None


UNLIMITED = Limits()


class Reader(Protocol):
    """The bearer of a hub's token, as far as their rights there go."""

    def may_read(self, name: str) -> bool:
        """Whether they may read an adapter of the hub, by any of its names. Raises GraftError where the hub does not say."""

    def readable(self, names: Iterable[str]) -> set[str]:
        """Those that they may read; of a far hub, as far as it can be asked for one list."""


@dataclass(frozen=True)
class Profile:
    """What a key is good for. `adapters`: patterns of names (`allows`); `base`: the bare base too. `weight`: of the holder's
    share among all who ask at once."""

    adapters: tuple[str, ...] = (EVERYTHING,)
    base: bool = True
    limits: Limits = UNLIMITED
    weight: float = 1.0

    def allows(self, model: str) -> bool:
        """Whether an adapter may be asked for by this name, whatever it stands for."""
        name = _comparable(model)
        return any(_covers(_comparable(pattern), name) for pattern in self.adapters)


@dataclass(frozen=True)
class Holder:
    """Who shows a key. `name` is for logs, metrics and bills, and no secret. `admin`: may load, unload and pin. `reader`: of a
    hub's token, whose own rights there hold for the hub's adapters."""

    name: str
    profile: Profile = Profile()
    admin: bool = False
    reader: Reader | None = None


ANYBODY = Holder("")  # where nobody is asked for a key


def _comparable(name: str) -> str:
    """Names in a registry are the same in small letters; names that a server gives are not."""
    return name.lower() if "/" in name else name


def _covers(pattern: str, name: str) -> bool:
    """`*`; `ns/*`; `task:*`; a name, for all its versions; a name with a version, for that one."""
    if pattern in (EVERYTHING, name):
        return True
    if pattern == _ALL_TASKS:
        return name.startswith(_TASK)
    repo = name.partition("@")[0]
    if pattern.endswith(_ALL_OF):
        namespace, slash, name = repo.partition("/")
        return bool(slash and name) and "/" not in name and namespace == pattern.removesuffix(_ALL_OF)
    return pattern == repo
