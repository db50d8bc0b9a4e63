"""What graft's own API takes: bodies of JSON, checked strictly, and the arguments of URLs, which are all text."""

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema

from graft.hub.evaluation.metrics import METRICS
from graft.hub.registry.leaderboard import MAX_EXTRA_CHARS, MAX_NUMBER, MAX_TEXT_CHARS, Evaluation
from graft.hub.registry.naming import MAIN
from graft.hub.registry.queries import MOST_LISTED
from graft.hub.registry.search import MAX_PAGE, SORTS, Query
from graft.hub.request_body import Body

MAX_REASON_CHARS = 1000
MAX_ARGUMENT = 999_999_999


def _check_extra(value: dict[str, object]) -> dict[str, object]:
    if len(json.dumps(value)) > MAX_EXTRA_CHARS:
        raise ValueError(f"may have {MAX_EXTRA_CHARS:,} characters as JSON")
    return value


Reason = Annotated[str, Field(max_length=MAX_REASON_CHARS)]
Number = Annotated[float, Field(gt=-MAX_NUMBER, lt=MAX_NUMBER)]  # finite
Count = Annotated[int, Field(ge=0, lt=MAX_NUMBER)]
Short = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Extra = Annotated[dict[str, object], AfterValidator(_check_extra)]
Argument = Annotated[int, Field(ge=0, le=MAX_ARGUMENT)]
# The registry says what is wrong with one that it doesn't know.
Metric = Annotated[str, WithJsonSchema({"enum": list(METRICS)})]
Sort = Annotated[str, WithJsonSchema({"enum": list(SORTS)})]


class Promotion(Body):
    """What an alias shall point at: a commit, branch, tag or alias."""

    revision: str = MAIN
    why: Reason = ""


class Rollback(Body):
    """Why an alias goes back."""

    why: Reason = ""


class NewTask(Body):
    """A task, or its new evaluation set: JSONL, as text."""

    metric: Metric
    description: str = ""
    data: str
    owners: list[str] | None = Field(None, description="The namespaces that say what task:T serves.")


class Owners(Body):
    """All owners of a task."""

    owners: list[str]


class NewEvaluation(Body):
    """A score of an adapter's revision (default: main) or, with `base_fingerprint` and without `repo`, of a bare base."""

    task: Short
    data_hash: Short
    metric: Short
    value: Number
    n: Count
    repo: Short | None = None
    revision: Short | None = None
    digest: Short | None = None
    base_fingerprint: Short | None = None
    low: Number | None = None
    high: Number | None = None
    seconds: Number | None = None
    engine: Short = ""
    predictions_hash: Short | None = None
    source: Literal["graft", "self-reported"] | None = None
    extra: Extra = Field(default_factory=dict)

    def evaluation(self, source: str) -> Evaluation:
        """`source`: where the body names none."""
        return Evaluation(**self.model_dump() | {"source": self.source or source})


class Arguments(Body):
    """Of a URL: numbers are spelled out, and others than these are left aside."""

    model_config = ConfigDict(extra="ignore", strict=False)


class Paging(Arguments):
    """`limit` rows from the `offset`th on."""

    limit: Argument = MOST_LISTED
    offset: Argument = 0

    @property
    def size(self) -> int:
        return min(self.limit, MAX_PAGE)


class Search(Paging):
    """Empty ones ask nothing; every `label` must be there."""

    q: str = ""
    task: str = ""
    base: str = Field("", description="An id, or a fingerprint.")
    method: str = ""
    license: str = ""
    author: str = ""
    label: list[str] = Field(default_factory=list)
    sort: Sort = Query.sort
    facets: Literal["yes", "no"] = "yes"
    limit: Argument = Query.limit

    def query(self) -> Query:
        return Query(
            text=self.q,
            task=self.task,
            base=self.base,
            method=self.method,
            license=self.license,
            author=self.author,
            labels=tuple(self.label),
            sort=self.sort,
            limit=self.size,
            offset=self.offset,
        )


class Name(Arguments):
    """`ns/name@rev`, or `task:T` (on the base with this fingerprint)."""

    name: str = ""
    base: str | None = None


class DataHash(Arguments):
    """An earlier evaluation set than the present one."""

    hash: str | None = None


class OnBase(Arguments):
    """Only what is for this base, by its id or fingerprint."""

    base: str | None = None
