"""Which models a key's holder may name, wherever that is asked: at an engine, or at an ingress in front of several."""

from collections.abc import Callable, Mapping, Sequence

from graft.hub.errors import NotFoundError
from graft.server.errors import NotAllowedError
from graft.server.keys.holders import EVERYTHING, Holder

ShelfNames = Callable[[Sequence[str]], Mapping[str, str]]
"""Those of names that are looked up in a registry or hub, and what they are called there."""


class UnknownModelError(NotFoundError):
    """No model of that name."""

    code = "model_not_found"
    param = "model"


def require_right(holder: Holder, name: str, base_name: str, shelf_names: ShelfNames) -> None:
    """Raises NotAllowedError for a model that the key is not for, UnknownModelError for what its holder may not know of."""
    if name == base_name:
        if not holder.profile.base:
            raise NotAllowedError(f"The key {holder.name} is not for the bare base: name an adapter.", "model")
        return
    if not holder.profile.allows(name):
        raise NotAllowedError(
            f"The key {holder.name} is not for {name!r}: GET /v1/models lists what it is for.", "model"
        )
    # What an admin has given a name of its own is still the hub's.
    if holder.reader is not None and not all(map(holder.reader.may_read, shelf_names([name]).values())):
        raise UnknownModelError(f"There is no model {name!r}, or you may not read it on the hub.")


def unknown_to(holder: Holder, error: NotFoundError) -> UnknownModelError:
    """No model of the name that was asked for. Whose key is not for all of them learns no other names by it."""
    if EVERYTHING in holder.profile.adapters:
        return UnknownModelError(str(error))
    return UnknownModelError("There is no such model: GET /v1/models lists what this key is for.")
