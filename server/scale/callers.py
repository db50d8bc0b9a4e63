"""Who asks an ingress, for which model, and whether they may: found out once, and told to the engine that answers. Ray-free.

Keys, rights and limits are one server's, though engines answer: an engine that has an answer under way reports to the account
that the ingress keeps of it (`Visits`).
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graft.hub.adapters.validation import inspect_artifact
from graft.hub.errors import NotFoundError
from graft.server.adapters.names import AdapterNames, Location, Shelf
from graft.server.http.access.shown_key import shown_key
from graft.server.keys.access import Access
from graft.server.keys.accounts import Accounts
from graft.server.keys.far_accounts import Answer, Told
from graft.server.keys.held_accounts import AccountsHeld
from graft.server.keys.holders import ANYBODY, UNLIMITED, Holder
from graft.server.keys.rights import require_right, unknown_to
from graft.server.keys.standing import AboveLimitError, RateLimitError, Standing
from graft.server.keys.usage import UsageFile

KEEP_S = 30.0  # how long an account stays open after its answer has gone out, for the engine to close it


@dataclass(frozen=True)
class Named:
    """What a name stands for. `model`: what an engine is to be asked for; `digest`: None for the bare base."""

    model: str
    digest: str | None


class Names:
    """What models' names stand for: looked up once a request, so that no request is answered by two versions.

    A name is followed as one server follows it (adapters/names.py): a registry's at the next request, a hub's within a second.
    """

    def __init__(self, names: AdapterNames, base_name: str):
        self.base_name = base_name
        self._names = names
        self._digests: dict[str, tuple[str, str]] = {}  # of folders: name -> (version, digest)

    async def find(self, name: str, holder: Holder) -> Named:
        """Raises NotAllowedError, UnknownModelError, or why it can't be found out."""
        if holder.reader is None:
            require_right(holder, name, self.base_name, self._shelf_names)
        else:  # a hub may be asked
            await asyncio.to_thread(require_right, holder, name, self.base_name, self._shelf_names)
        if name == self.base_name:
            return Named(name, None)
        try:
            location = self._names.locate_at_once(name)
            if location is None:
                location = await asyncio.to_thread(self._names.locate, name)
        except NotFoundError as error:
            raise unknown_to(holder, error) from None
        if location.folder is not None:
            return Named(name, await self._digest(location, location.folder))
        return Named(f"{location.name}@{location.revision}", location.digest)

    async def _digest(self, location: Location, folder: Path) -> str:
        version, digest = self._digests.get(location.name, ("", ""))
        if version != location.version:
            digest = (await asyncio.to_thread(inspect_artifact, folder, None)).digest
            self._digests[location.name] = location.version, digest
        return digest

    def _shelf_names(self, names: Sequence[str]) -> Mapping[str, str]:
        called = {name: self._names.shelf_name(name) for name in names}
        return {name: shelved for name, shelved in called.items() if shelved is not None}


@dataclass(frozen=True)
class Opening:
    """How callers are let in and names found, made where the command runs and carried out where the ingress does.

    `access` and `shelf` open keys (of a base by its fingerprint) and the registry or hub; `local`: folders by name; `usage`:
    where what was used is written down.
    """

    access: Callable[[str], Access]
    shelf: Callable[[], Shelf | None]
    local: Mapping[str, Path] = field(default_factory=dict)
    usage: Path | None = None

    def names(self, fingerprint: str, base_name: str) -> Names:
        return Names(AdapterNames(fingerprint, self.local, self.shelf()), base_name)


def holder_of(access: Access, headers: Mapping[str, str], *, needs_key: bool) -> Holder:
    """Raises InvalidKeyError, or why a key can't be looked up."""
    if access.keyring is None:
        return ANYBODY_AT_ALL
    if not needs_key:
        return ANYBODY
    return access.keyring.holder(shown_key(headers))


ANYBODY_AT_ALL = Holder("", admin=True)  # where there are no keys everybody may load and unload


class Visits:
    """The accounts of requests under way, by names that only the engines learn. Used by one thread."""

    def __init__(self, accounts: Accounts, *, all_count: bool):
        """`all_count`: of keys without limits, too, what they use is wanted."""
        self._accounts = accounts
        self._all_count = all_count
        self._open: dict[str, tuple[Holder, AccountsHeld]] = {}

    def begin(self, holder: Holder) -> str:
        """Its name; "" where nothing of it is counted here."""
        if holder.profile.limits == UNLIMITED and not self._all_count:
            return ""
        name = secrets.token_urlsafe(18)
        self._open[name] = holder, AccountsHeld(self._accounts)
        return name

    def end(self, name: str, *, answered: bool) -> None:
        """The answer has gone out, and the engine closes the account itself; else there is nobody who would."""
        if not answered:
            self._close(name)
        elif name in self._open:
            asyncio.get_running_loop().call_later(KEEP_S, self._close, name)

    def require(self, name: str) -> None:
        """Raises NotFoundError for an account that is closed, or that there has never been."""
        if name not in self._open:
            raise NotFoundError("There is no such request under way.")

    def do(self, name: str, what: str, told: Told) -> Answer:
        """What an engine says of a request: `enter`, `reserve` or `leave`. Raises NotFoundError for an account that is closed."""
        self.require(name)
        holder, account = self._open[name]
        who, limits = holder.name, holder.profile.limits
        try:
            if what == "enter":
                return Answer(account.enter(who, limits))
            if what == "reserve":
                return Answer(account.reserve(who, limits, told.tokens))
        except (RateLimitError, AboveLimitError) as refusal:
            return Answer.refusing(refusal)
        account.leave(who, limits, told.reserved, told.used)  # open still: another engine may have to answer
        return Answer(Standing())

    def _close(self, name: str) -> None:
        if name in self._open:
            self._open.pop(name)[1].leave_all()


def make_visits(usage: Path | None) -> Visits:
    """Raises GraftError where `usage` can't be written."""
    file = UsageFile(usage) if usage is not None else None
    return Visits(Accounts(lambda used: None, file), all_count=file is not None)
