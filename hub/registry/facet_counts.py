"""How many adapters there are by task, base, method and licence, and in all.

Counting rows takes longer the more there are. So adapters are counted as they come and go: the table `facet_counts`, kept
by triggers on `listing`, has a row for each combination of the four. A query that asks for more (a text, labels, an
author) is counted among what it finds; so are the caller's own private adapters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graft.hub.registry.storage.database import Database

FACETS = ("task", "base", "method", "license")
_COLUMNS = ", ".join(FACETS)


@dataclass(frozen=True)
class Condition:
    """A part of a WHERE clause and the values of its question marks."""

    sql: str
    values: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Narrowed:
    """What is asked for beside the facets. `lookups`: SELECTs of the repos that have the words, the labels."""

    lookups: tuple[Condition, ...] = ()
    author: str = ""

    @property
    def conditions(self) -> list[Condition]:
        looked_up = [Condition(f"repo_id IN ({lookup.sql})", lookup.values) for lookup in self.lookups]
        return looked_up + ([Condition("namespace = ?", (self.author,))] if self.author else [])


@dataclass(frozen=True)
class Counts:
    """`total`: under all that is chosen. `facets`: values with counts, the most frequent first, each counted under the
    *other* chosen facets."""

    total: int
    facets: dict[str, list[tuple[str, int]]]


def count(
    db: Database,
    chosen: dict[str, str],
    seen: Condition | None,
    narrowed: Narrowed,
    counted: Sequence[str] = FACETS,
) -> Counts:
    """`chosen`: facet -> its value. `seen`: what the caller sees of `listing`; None: all. `narrowed`: what else is asked.
    `counted`: the facets whose values are counted, beside the total."""

    def rows(chosen: dict[str, str]) -> Condition:
        return _found(db, chosen, seen, narrowed) if narrowed.conditions else _counted(chosen, seen)

    shared, reuse = rows(chosen), "" if narrowed.conditions else "NOT "
    parts = [Condition("SELECT '', '', coalesce(sum(n), 0) FROM counted")]
    for facet in counted:
        # Only a facet that is chosen is counted among other rows than the rest: most are read once.
        own = rows({**chosen, facet: ""}) if chosen[facet] else Condition("SELECT * FROM counted")
        parts.append(Condition(f"SELECT '{facet}', {facet}, sum(n) FROM ({own.sql}) GROUP BY {facet}", own.values))
    statement = f"WITH counted AS {reuse}MATERIALIZED ({shared.sql}) " + " UNION ALL ".join(part.sql for part in parts)
    facets: dict[str, list[tuple[str, int]]] = {facet: [] for facet in counted}
    total = 0
    for facet, value, n in db.execute(statement, [*shared.values, *values_of(parts)]):
        if facet:
            facets[facet].append((value, n))
        else:
            total = n
    return Counts(
        total, {facet: sorted(pairs, key=lambda pair: (-pair[1], pair[0])) for facet, pairs in facets.items()}
    )


def conditions(chosen: dict[str, str]) -> list[Condition]:
    return [Condition(f"{facet} = ?", (value,)) for facet, value in chosen.items() if value]


def values_of(conditions: Iterable[Condition]) -> tuple[str | int, ...]:
    return tuple(value for condition in conditions for value in condition.values)


def all_of(every: Iterable[Condition]) -> Condition:
    """True where each of them is."""
    every = list(every)
    return Condition(" AND ".join(["1", *(condition.sql for condition in every)]), values_of(every))


def source(db: Database, chosen: dict[str, str], narrowed: Narrowed) -> str:
    """The listing, by the index that leads to the fewest rows: SQLite does not know how many a look-up finds."""
    if not narrowed.lookups:
        return "listing"
    return f"listing INDEXED BY {'listing_task' if _task_is_rarer(db, chosen['task'], narrowed) else 'listing_found'}"


def _task_is_rarer(db: Database, task: str, narrowed: Narrowed) -> bool:
    if not task:
        return False
    of_task = db.execute("SELECT coalesce(sum(n), 0) FROM facet_counts WHERE task = ?", [task]).fetchone()[0]
    return all(
        of_task < db.execute(f"SELECT count(*) FROM ({lookup.sql})", lookup.values).fetchone()[0]
        for lookup in narrowed.lookups
    )


def _found(db: Database, chosen: dict[str, str], seen: Condition | None, narrowed: Narrowed) -> Condition:
    """The rows that a search finds, one by one."""
    where = all_of([*([seen] if seen else []), *conditions(chosen), *narrowed.conditions])
    return Condition(f"SELECT {_COLUMNS}, 1 AS n FROM {source(db, chosen, narrowed)} WHERE {where.sql}", where.values)


def _counted(chosen: dict[str, str], seen: Condition | None) -> Condition:
    """What is public, counted before, and what of the rest the caller sees."""
    where = all_of(conditions(chosen))
    if seen is None:
        return Condition(f"SELECT {_COLUMNS}, n FROM facet_counts WHERE {where.sql}", where.values)
    return Condition(
        f"SELECT {_COLUMNS}, n FROM facet_counts WHERE private = 0 AND {where.sql} "
        f"UNION ALL SELECT {_COLUMNS}, 1 FROM listing WHERE private = 1 AND {seen.sql} AND {where.sql}",
        (*where.values, *seen.values, *where.values),
    )
