"""Before every view: who calls, and whether they may; and which models they may name."""

from collections.abc import Iterable

from flask import Flask, g, request

from graft.server.engine.inventory import AdapterEntry
from graft.server.errors import NotAllowedError
from graft.server.http.access.introduction import SECRET, read_introduction
from graft.server.http.access.routes import NEEDS, Need, require_known_routes
from graft.server.http.access.shown_key import shown_key
from graft.server.http.service import find_served, service, shown_model
from graft.server.keys.far_accounts import FarAccounts
from graft.server.keys.holders import Holder
from graft.server.keys.rights import UnknownModelError, require_right
from graft.server.operations.request_log import plain


def guard(app: Flask) -> None:
    """To be called when all routes are there. Raises LookupError for one without a rule."""
    require_known_routes(app)
    app.before_request(_admit)


def _admit() -> None:
    """Raises InvalidKeyError, NotAllowedError, or why a key can't be looked up."""
    access = service().access
    # What is added later (`guard` has seen all that is ours) is an admin's.
    need = NEEDS.get(request.endpoint, Need.ADMIN) if request.endpoint is not None else Need.NOTHING
    if need is Need.METRICS:
        need = Need.NOTHING if access.open_metrics else Need.ADMIN
    if need is Need.NOTHING or (access.keyring is None and access.secret is None):
        return
    if access.secret is not None:
        _admit_introduced(access.secret)
    elif access.keyring is not None:
        g.holder = access.keyring.holder(shown_key(request.headers))
    g.record.key = g.holder.name
    if need is Need.ADMIN and not g.holder.admin:
        raise NotAllowedError(f"{request.path} takes an admin's key, and {g.holder.name}'s is none.")


def _admit_introduced(secret: str) -> None:
    """As the ingress says. Raises InvalidKeyError for whoever else asks."""
    told = read_introduction(request.headers, secret)
    g.holder, g.asked, g.record.client = told.holder, told.asked, told.client
    if told.accounts:
        g.accounts = FarAccounts(told.accounts, {SECRET: secret}, g.accounts)


def require_model(name: str) -> None:
    """Raises NotAllowedError for a model that the key is not for, UnknownModelError for what its holder may not know of."""
    require_right(g.holder, name, service().base_name, service().engine.shelf_names)


def name_model(name: str) -> None:
    """A request names a model: what it stands for is told in the answer's headers. Raises as `require_model`."""
    g.record.model = plain(shown_model(name))
    require_model(name)
    g.served = find_served(name)


def require_name(name: str, param: str) -> None:
    """Raises NotAllowedError for a name of an adapter that the key is not for, whatever it stands for or is to stand for."""
    holder: Holder = g.holder
    if not holder.profile.allows(name):
        raise NotAllowedError(f"The key {holder.name} is not for {name!r}.", param)


def require_source(name: str) -> None:
    """As `require_model`, of a name on the registry or hub that is to be given another here."""
    require_name(name, "lora_path")
    holder: Holder = g.holder
    if holder.reader is not None and not holder.reader.may_read(name):
        raise UnknownModelError(f"There is no adapter {name!r}, or you may not read it on the hub.")


def may_use_base() -> bool:
    holder: Holder = g.holder
    return holder.profile.base


def usable(entries: Iterable[AdapterEntry]) -> list[AdapterEntry]:
    """Those that the key's holder may name."""
    holder: Holder = g.holder
    allowed = [entry for entry in entries if holder.profile.allows(entry.name)]
    if holder.reader is None:
        return allowed
    shelved = service().engine.shelf_names([entry.name for entry in allowed])
    readable = holder.reader.readable(set(shelved.values()))
    return [entry for entry in allowed if entry.name not in shelved or shelved[entry.name] in readable]
