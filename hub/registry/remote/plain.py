"""Searching a hub of another kind than graft's, by what the Hugging Face protocol has words for."""

import re
from collections.abc import Iterator
from urllib.parse import urlencode

from huggingface_hub.hf_api import ModelInfo
from pydantic import TypeAdapter

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.errors import NotOfferedError
from graft.hub.registry.remote.answers import BASE_LABEL, LICENSE_LABEL, entry_of
from graft.hub.registry.remote.api import HubApi
from graft.hub.registry.search import Page, Query, SearchHit

# Query.sort -> what the protocol calls it. It knows neither scores nor sizes.
SORTS = {"updated": "lastModified", "created": "createdAt", "downloads": "downloads"}
_ROWS = TypeAdapter(list[dict[str, object]])
FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def search(hub: HubApi, query: Query) -> Page:
    """As AnyRegistry.search; such a hub does not tell how many there are in all.

    Raises NotOfferedError for a sort that it can't do, and for a base by its fingerprint.
    """
    if query.sort not in SORTS:
        raise NotOfferedError(f"{hub.url} can't sort by {query.sort!r}: choose one of {', '.join(SORTS)}.")
    if FINGERPRINT.fullmatch(query.base):
        raise NotOfferedError(f"{hub.url} knows bases by their ids only: give --base ORG/NAME.")
    labels = [*query.labels, *filter(None, [query.method])]
    labels += [
        prefix + value
        for prefix, value in ((TASK_PREFIX, query.task), (BASE_LABEL, query.base), (LICENSE_LABEL, query.license))
        if value
    ]
    end = query.offset + query.limit
    wanted = {
        "author": query.author,
        "search": query.text,
        "sort": SORTS[query.sort],
        "limit": str(end + 1),
        "full": "true",
    }
    asked = [*(("filter", label) for label in labels), *((key, value) for key, value in wanted.items() if value)]
    found = _first(
        hub.pages(f"/api/models?{urlencode(asked)}", _entries), end + 1
    )  # one more tells whether there are more
    return Page(tuple(found[query.offset : end]), len(found), exact=len(found) <= end)


def _first(pages: Iterator[list[SearchHit]], count: int) -> list[SearchHit]:
    """No more pages are asked for than it takes."""
    found: list[SearchHit] = []
    for page in pages:
        found += page
        if len(found) >= count:
            break
    return found[:count]


def _entries(answer: object) -> list[SearchHit]:
    return [entry_of(ModelInfo(**row)) for row in _ROWS.validate_python(answer)]
