"""The headers that answers may have, described."""

from collections.abc import Mapping

from graft.server.http.access import header_names as names
from graft.server.http.access.limit_headers import ANTHROPIC, KINDS, OPENAI, TOLD, Wording

Schema = dict[str, object]
ADAPTER = (names.ADAPTER_DIGEST, names.ADAPTER_REVISION)  # what it was made by
_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LIMITS = {"limit": "How many the key may have", "remaining": "How many are left", "reset": "When all are there again"}


def _header(description: str, schema: Schema = _TEXT, *, required: bool = False) -> Schema:
    return {"description": description, "schema": schema} | ({"required": True} if required else {})


def _limits(wording: Wording, reset: Schema) -> dict[str, Schema]:
    return {
        wording.name.format(what=what, kind=kind): _header(
            f"{_LIMITS[what]}: {kind} a minute, where that has a limit.", reset if what == "reset" else _COUNT
        )
        for kind in KINDS
        for what in TOLD
    }


HEADERS: Mapping[str, Schema] = {
    names.REQUEST_ID: _header("The request's own, if it can stand in a header, else a new one.", required=True),
    names.MESSAGE_ID: _header("The same.", required=True),
    names.ADAPTER_DIGEST: _header("Of the adapter that the answer is of."),
    names.ADAPTER_REVISION: _header("Of the same, where it comes from a registry or hub."),
    names.IGNORED_FIELDS: _header("Fields of the body that were left aside, parted by commas."),
    names.RETRY_AFTER: _header("Seconds to wait before the same is asked again.", _COUNT),
    names.SHOULD_RETRY: _header("Where asking again would end the same way.", {"const": "false"}),
    names.AUTHENTICATE: _header("How a key is shown.", {"const": "Bearer"}),
    **_limits(OPENAI, _TEXT),
    **_limits(ANTHROPIC, {"type": "string", "format": "date-time"}),
}
