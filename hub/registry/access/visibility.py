"""Which repos a caller sees. Others are absent: no answer differs between a hidden repo and none.

A repo that is there at all is a row of the view `live_repos` (not deleted, not withdrawn) and of `listing`, which
follows it; whether it is seen is the one condition below, over either.
"""

import json

from graft.hub.registry.access.callers import Caller

EVERYTHING = "1"


def visible(caller: Caller, table: str) -> tuple[str, list[str]]:
    """A condition over `table`, which has the columns namespace, name and private, and its values: what is public, and what is
    the caller's own."""
    if caller.namespaces is None:
        return EVERYTHING, []
    mine, values = owned(caller, table)
    return (f"({table}.private = 0 OR {mine})" if values else f"{table}.private = 0"), values


def owned(caller: Caller, table: str) -> tuple[str, list[str]]:
    """As `visible`, of the caller's own: those of their namespaces, and the single ones that their token is for."""
    if caller.namespaces is None:
        return EVERYTHING, []
    names = {
        f"lower({table}.namespace)": caller.namespaces,
        f"lower({table}.namespace || '/' || {table}.name)": caller.repos,
    }
    wanted = {name: json.dumps(sorted(among)) for name, among in names.items() if among}
    parts = [f"{name} IN (SELECT value FROM json_each(?))" for name in wanted]
    return f"({' OR '.join(parts) or '0'})", list(wanted.values())
