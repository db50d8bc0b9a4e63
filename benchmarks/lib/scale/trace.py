"""Who asks for what, when: requests at random times for adapters by Zipf's law, with bursts, drift and a sudden favourite."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PROMPT, NEW = (32, 256), 96  # tokens: a prompt's from, to; an answer's mean


@dataclass(frozen=True)
class Failure:
    """`count` replicas end at `at` seconds."""

    at: float
    count: int


@dataclass(frozen=True)
class Scenario:
    """`rate`: requests a second. `burst`: every so many seconds, for so long, so many times the rate. `drift`: every so many
    seconds such a share of the adapters change places. `favourite`: from when on one more adapter gets which share."""

    name: str
    rate: float
    seconds: float
    adapters: int
    zipf: float = 1.0
    burst: tuple[float, float, float] | None = None
    drift: tuple[float, float] | None = None
    favourite: tuple[float, float] | None = None
    failures: tuple[Failure, ...] = field(default=())


@dataclass(frozen=True)
class Trace:
    """One entry a request, by time."""

    at: NDArray[np.float64]
    adapter: NDArray[np.int64]
    prompt: NDArray[np.int64]
    new: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.at)


def draw(scenario: Scenario, seed: int, favourites: int = 0) -> Trace:
    """`favourites`: a seed of its own for which adapters are asked for most."""
    random = np.random.default_rng(seed)
    at = _times(scenario, random)
    return Trace(
        at=at,
        adapter=_adapters(scenario, at, random, np.random.default_rng(favourites).permutation(scenario.adapters)),
        prompt=random.integers(*PROMPT, len(at)),
        new=1 + random.geometric(1 / (NEW - 1), len(at)),
    )


def kinds_of(adapters: int, shares: list[float], seed: int) -> NDArray[np.int64]:
    """Which kind each adapter is of, whatever it is asked for."""
    return np.random.default_rng(seed).choice(len(shares), adapters, p=shares)


def _times(scenario: Scenario, random: np.random.Generator) -> NDArray[np.float64]:
    """A Poisson process of the highest rate, thinned to that of each moment."""
    every, length, times = scenario.burst or (1.0, 0.0, 1.0)
    most = scenario.rate * max(times, 1.0)
    gaps = random.exponential(1 / most, int(scenario.seconds * most * 1.2) + 100)
    at = np.cumsum(gaps)
    at = at[at < scenario.seconds]
    rate = np.where(at % every < length, times, 1.0) * scenario.rate
    return at[random.random(len(at)) < rate / most]


def _adapters(
    scenario: Scenario, at: NDArray[np.float64], random: np.random.Generator, who: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`who`: the adapters by how often they are asked for."""
    weights = np.arange(1, scenario.adapters + 1, dtype=float) ** -scenario.zipf
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), random.random(len(at)))
    ranks = np.minimum(ranks, scenario.adapters - 1)
    every, share = scenario.drift or (np.inf, 0.0)
    chosen = np.empty(len(at), np.int64)
    for period in range(int(at[-1] // every) + 1 if np.isfinite(every) else 1):
        now = at // every == period if np.isfinite(every) else slice(None)
        chosen[now] = who[ranks[now]]
        moved = random.choice(scenario.adapters, int(share * scenario.adapters), replace=False)
        who[moved] = who[random.permutation(moved)]
    if scenario.favourite:
        since, share = scenario.favourite
        chosen[(at >= since) & (random.random(len(at)) < share)] = who[-1]
    return chosen
