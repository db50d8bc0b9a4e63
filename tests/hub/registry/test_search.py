"""Pages and counts against a slow obvious reference: all rows read, filtered and sorted in Python."""

import itertools
import random
from collections import Counter

import pytest

from graft.hub.registry import facet_counts, search
from graft.hub.registry.access.callers import OWNER, STRANGER, Caller
from graft.hub.registry.facet_counts import FACETS
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import SORTS, Query
from graft.hub.registry.storage.schema import write_transaction

ANN = Caller("ann", "read", frozenset({"ann"}))
TASKS, BASES, LICENSES, WORDS = (
    ("topic", "mood"),
    ("acme/one", "acme/two", ""),
    ("mit", "unknown"),
    ("news", "law", "poem"),
)


@pytest.fixture
def filled(tmp_path) -> Registry:
    """Repos of three people, made, changed, hidden, renamed and deleted."""
    registry, draw = Registry(tmp_path / "registry.db"), random.Random(3)
    for number in range(80):
        name = f"{draw.choice(('ann', 'bob', 'team'))}/{draw.choice(WORDS)}-{number}"
        repo = registry.create_repo(name, private=draw.random() < 0.3)
        for _ in range(draw.choice((1, 1, 2))):  # what is listed anew leaves no count behind
            card = {
                "tags": [f"task:{draw.choice(TASKS)}"],
                "license": draw.choice(LICENSES),
                "base_model": draw.choice(BASES),
            }
            with write_transaction(registry.db):
                search.list_repo(registry.db, repo.id, None, card, f"About {draw.choice(WORDS)}.")
        match draw.randrange(8):
            case 0:
                registry.delete_repo(name)
            case 1:
                registry.set_private(name, draw.random() < 0.5)
            case 2:
                registry.move_repo(name, f"{name}-moved")
    return registry


def rows_of(registry: Registry, query: Query, caller: Caller, without: str = "") -> list[dict]:
    """Of the listing, all that the query finds."""
    rows = [
        dict(row)
        for row in registry.db.execute("SELECT listing.*, card FROM listing JOIN texts ON texts.rowid = repo_id")
    ]
    owned = {row["repo_id"] for row in rows if caller.namespaces is None or row["namespace"] in caller.namespaces}
    for facet in set(FACETS) - {without}:
        rows = [row for row in rows if getattr(query, facet) in ("", row[facet])]
    return [
        row
        for row in rows
        if (not row["private"] or row["repo_id"] in owned)
        and query.author in ("", row["namespace"])
        and all(word in row["card"].lower() or word in row["name"] for word in query.text.split())
    ]


QUERIES = [
    Query(task=task, base=base, license=license, author=author, text=text, sort=sort, limit=limit, offset=offset)
    for task, base, license, author, text in itertools.product(
        ("", "topic"), ("", "acme/one"), ("", "mit"), ("", "bob"), ("", "news", "law poem")
    )
    for sort, limit, offset in (("updated", 50, 0), ("name", 3, 2), ("size", 0, 0))
]


@pytest.mark.parametrize("caller", [OWNER, STRANGER, ANN], ids=("owner", "stranger", "ann"))
def test_counts_and_pages_are_those_of_all_rows(filled: Registry, caller: Caller) -> None:
    for query in QUERIES:
        page, counts = search.browse(filled.db, query, caller)
        found = rows_of(filled, query, caller)
        assert page.total == len(found), query
        key = {"updated": "updated_at", "name": "name", "size": "bytes"}[query.sort]
        ordered = sorted(found, key=lambda row: (row[key], row["repo_id"]), reverse=query.sort == "updated")
        if query.sort == "name":
            ordered = sorted(found, key=lambda row: (row["namespace"], row["name"]))
        names = [f"{row['namespace']}/{row['name']}" for row in ordered[query.offset : query.offset + query.limit]]
        assert [entry.name for entry in page.entries] == names, query
        for facet in FACETS:
            expected = Counter(row[facet] for row in rows_of(filled, query, caller, without=facet))
            assert counts[facet] == sorted(expected.items(), key=lambda item: (-item[1], item[0])), (query, facet)


@pytest.mark.parametrize("walks", [True, False])
@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("narrowed", [{}, {"text": "news"}], ids=["facet alone", "and text"])
def test_walking_and_sorting_give_one_page(filled: Registry, monkeypatch, narrowed, sort: str, walks: bool) -> None:
    """Which of the two is taken is a question of time alone."""
    query = Query(task="topic", sort=sort, limit=7, offset=3, **narrowed)
    expected = search.search(filled.db, query, ANN)
    monkeypatch.setattr(search, "_walks", lambda *_: walks)
    assert search.search(filled.db, query, ANN) == expected
    assert len(expected.entries) == 7


def test_a_walk_is_taken_where_much_is_found(filled: Registry) -> None:
    """And no other table of the size of the listing is built for it."""
    for query, walks in (
        (Query(limit=5), True),
        (Query(task="topic", limit=2), True),
        (Query(limit=5, text="news"), True),
        (Query(limit=500, text="news"), False),
    ):
        assert search._walks(filled.db, query, search.search(filled.db, query, OWNER).total) == walks
    assert not search._walks(filled.db, Query(limit=5), 2)


@pytest.mark.parametrize("rarer", [True, False])
def test_searches_give_one_answer_from_either_end(filled: Registry, monkeypatch, rarer: bool) -> None:
    """From the rows of the task, or from what the words lead to: which of them is a question of time alone."""
    queries = [query for query in QUERIES if query.task and query.text]
    expected = [search.browse(filled.db, query, ANN) for query in queries]
    monkeypatch.setattr(facet_counts, "_task_is_rarer", lambda *_: rarer)
    assert [search.browse(filled.db, query, ANN) for query in queries] == expected


@pytest.mark.parametrize(
    ("text", "task", "index"), [("law poem", "topic", "listing_found"), ("a", "topic", "listing_task")]
)
def test_a_search_begins_where_less_is(filled: Registry, text: str, task: str, index: str) -> None:
    """In a registry of one large task a rare word leads to a few rows; in one of many tasks the task does."""
    narrowed = search._narrowed(Query(text=text))
    source = facet_counts.source(filled.db, {"task": task}, narrowed)
    found = search.search(filled.db, Query(text=text), OWNER).total
    of_task = search.search(filled.db, Query(task=task), OWNER).total
    assert (of_task < found) == (index == "listing_task") and source.endswith(index)


def test_repos_are_looked_up_by_label_also_where_the_tables_have_been_analysed(filled: Registry) -> None:
    """SQLite thought it cheaper then to read all labels, in the order of repos, than to sort what is found."""
    filled.db.execute("ANALYZE")
    [condition] = search._narrowed(Query(labels=("lora", "task:topic"))).conditions
    plan = filled.db.execute(f"EXPLAIN QUERY PLAN SELECT * FROM listing WHERE {condition.sql}", list(condition.values))
    steps = [row["detail"] for row in plan]
    assert any(step.startswith("SEARCH labels USING PRIMARY KEY") for step in steps), steps
