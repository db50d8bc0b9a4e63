"""Before every view: who calls, and whether they may; and which models they may name.

A key comes as OpenAI's clients send it (`Authorization: Bearer KEY`) or as Anthropic's do (`x-api-key: KEY`).
"""

from collections.abc import Iterable

from flask import Flask, g, request

from graft.server.engine.client import EngineClient
from graft.server.engine.inventory import AdapterEntry
from graft.server.errors import InvalidKeyError, NotAllowedError
from graft.server.http.access.routes import NEEDS, Need, require_known_routes
from graft.server.http.service import UnknownModelError, find_served, service
from graft.server.keys.holders import Holder, Reader
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
    if access.keyring is None or need is Need.NOTHING:
        return
    g.holder = access.keyring.holder(_shown_key())
    g.record.key = g.holder.name
    if need is Need.ADMIN and not g.holder.admin:
        raise NotAllowedError(f"{request.path} takes an admin's key, and {g.holder.name}'s is none.")


def _shown_key() -> str:
    """Raises InvalidKeyError where there is none."""
    scheme, _, bearer = request.headers.get("Authorization", "").strip().partition(" ")
    key = bearer.strip() if scheme.lower() == "bearer" else ""
    key = key or request.headers.get("x-api-key", "").strip()
    if not key:
        raise InvalidKeyError(
            "This server takes keys: send one as `Authorization: Bearer KEY`, or as `x-api-key: KEY`."
        )
    return key


def require_model(name: str) -> None:
    """Raises NotAllowedError for a model that the key is not for, UnknownModelError for what its holder may not know of."""
    holder: Holder = g.holder
    if name == service().base_name:
        if not holder.profile.base:
            raise NotAllowedError(f"The key {holder.name} is not for the bare base: name an adapter.", "model")
        return
    if not holder.profile.allows(name):
        raise NotAllowedError(
            f"The key {holder.name} is not for {name!r}: GET /v1/models lists what it is for.", "model"
        )
    if holder.reader is not None and not _may_read(holder.reader, name, service().engine):
        raise UnknownModelError(f"There is no model {name!r}, or you may not read it on the hub.")


def name_model(name: str) -> None:
    """A request names a model: what it stands for is told in the answer's headers. Raises as `require_model`."""
    g.record.model = plain(name)
    require_model(name)
    g.served = find_served(name)


def require_source(name: str) -> None:
    """As `require_model`, of a name on the registry or hub that is to be given another here."""
    holder: Holder = g.holder
    if not holder.profile.allows(name):
        raise NotAllowedError(f"The key {holder.name} is not for {name!r}.", "lora_path")
    if holder.reader is not None and not holder.reader.may_read(name):
        raise UnknownModelError(f"There is no adapter {name!r}, or you may not read it on the hub.")


def _may_read(reader: Reader, name: str, engine: EngineClient) -> bool:
    # What an admin has given a name of its own is still the hub's.
    return all(map(reader.may_read, engine.shelf_names([name]).values()))


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
