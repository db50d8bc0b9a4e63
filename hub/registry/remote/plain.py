"""Searching a hub of another kind than graft's, by what the Hugging Face protocol has words for."""

import re
from itertools import islice
from typing import Literal

from huggingface_hub import HfApi

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.errors import NotOfferedError
from graft.hub.registry.remote.answers import BASE_LABEL, LICENSE_LABEL, entry_of
from graft.hub.registry.search import Page, Query

# Query.sort -> what the protocol calls it. It knows neither scores nor sizes.
SORTS: dict[str, Literal["last_modified", "created_at", "downloads"]] = {
    "updated": "last_modified",
    "created": "created_at",
    "downloads": "downloads",
}
FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def search(client: HfApi, query: Query) -> Page:
    """As AnyRegistry.search; such a hub does not tell how many there are in all.

    Raises NotOfferedError for a sort that it can't do, and for a base by its fingerprint.
    """
    if query.sort not in SORTS:
        raise NotOfferedError(f"{client.endpoint} can't sort by {query.sort!r}: choose one of {', '.join(SORTS)}.")
    if FINGERPRINT.fullmatch(query.base):
        raise NotOfferedError(f"{client.endpoint} knows bases by their ids only: give --base ORG/NAME.")
    labels = [*query.labels, *filter(None, [query.method])]
    labels += [
        prefix + value
        for prefix, value in ((TASK_PREFIX, query.task), (BASE_LABEL, query.base), (LICENSE_LABEL, query.license))
        if value
    ]
    end = query.offset + query.limit
    models = client.list_models(
        filter=labels or None,
        author=query.author or None,
        search=query.text or None,
        sort=SORTS[query.sort],
        limit=end + 1,  # one more tells whether there are more
        full=True,
    )
    found = [entry_of(info) for info in islice(models, end + 1)]
    return Page(tuple(found[query.offset : end]), len(found), exact=len(found) <= end)
