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
class Counts:
    """`total`: under all that is chosen. `facets`: values with counts, the most frequent first, each counted under the
    *other* chosen facets."""

    total: int
    facets: dict[str, list[tuple[str, int]]]


def count(
    db: Database,
    chosen: dict[str, str],
    seen: Condition | None,
    narrowed: list[Condition],
    counted: Sequence[str] = FACETS,
) -> Counts:
    """`chosen`: facet -> its value. `seen`: what the caller sees of `listing`; None: all. `narrowed`: what else is asked.
    `counted`: the facets whose values are counted, beside the total."""
    rows, reuse = _found(seen, narrowed) if narrowed else _counted(seen), "" if narrowed else "NOT "
    parts = [_part("''", "''", chosen, "")]
    parts += [_part(f"'{facet}'", facet, {**chosen, facet: ""}, f"GROUP BY {facet}") for facet in counted]
    statement = f"WITH counted AS {reuse}MATERIALIZED ({rows.sql}) " + " UNION ALL ".join(part.sql for part in parts)
    facets: dict[str, list[tuple[str, int]]] = {facet: [] for facet in counted}
    total = 0
    for facet, value, n in db.execute(statement, [*rows.values, *values_of(parts)]):
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


def _part(name: str, column: str, chosen: dict[str, str], group: str) -> Condition:
    wanted = conditions(chosen)
    where = " AND ".join(["1", *(condition.sql for condition in wanted)])
    return Condition(
        f"SELECT {name}, {column}, coalesce(sum(n), 0) FROM counted WHERE {where} {group}", values_of(wanted)
    )


def _found(seen: Condition | None, narrowed: list[Condition]) -> Condition:
    """The rows that a search finds, one by one."""
    every = [*([seen] if seen else []), *narrowed]
    where = " AND ".join(condition.sql for condition in every)
    return Condition(f"SELECT {_COLUMNS}, 1 AS n FROM listing WHERE {where}", values_of(every))


def _counted(seen: Condition | None) -> Condition:
    """What is public, counted before, and what of the rest the caller sees."""
    if seen is None:
        return Condition(f"SELECT {_COLUMNS}, n FROM facet_counts")
    return Condition(
        f"SELECT {_COLUMNS}, n FROM facet_counts WHERE private = 0 "
        f"UNION ALL SELECT {_COLUMNS}, 1 FROM listing WHERE private = 1 AND {seen.sql}",
        seen.values,
    )
