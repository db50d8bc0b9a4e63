"""How many replicas a deployment needs, and what its hub has to bear, from measured costs. Pure: torch-free.

Which share of requests finds its adapter in memory follows from how often each is asked for: an LRU memory holds an adapter
from its last request on for some time T, the same for all (Che, Tung and Wang 2002, "Hierarchical web caching systems"), and T
is such that what is held just fits. With placement by digests (server/scale/placement.py) the memories of all replicas are one; where any
replica gets any request, each has to hold by itself what all ask for.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graft.hub.errors import GraftError
from graft.hub.machine.bytes_text import bytes_text
from graft.server.sizing.costs import Costs
from graft.server.sizing.hub_limits import HubLimits

MOST_REPLICAS = 1 << 20


@dataclass(frozen=True)
class Demand:
    """What is asked of a deployment. `rate`: requests a second; `zipf`: the exponent of how unevenly adapters are asked for.

    `busy`: which share of a replica's time may be taken; what is left keeps waiting short. `rows`: requests that a replica
    computes together; `memory`: bytes of a replica.
    """

    adapters: int
    rate: float
    prompt: int
    new: int
    zipf: float
    busy: float
    rows: int
    memory: int


@dataclass(frozen=True)
class Fleet:
    """What so many replicas come to. `hits`: the share of requests that find their adapter in memory; `loads`: a second, of
    all; `steps_busy`, `loads_busy`: shares of a replica's time that computing and loading one by one take."""

    replicas: int
    hits: float
    loads: float
    steps_busy: float
    loads_busy: float


@dataclass(frozen=True)
class Sizing:
    """A deployment, and what it asks of its hub. `fits`: adapters in one replica's memory; bytes of one replica."""

    fits: int
    cache_bytes: int
    adapters_bytes: int
    placed: Fleet
    anywhere: Fleet  # the same demand where any replica gets any request
    hub_disk: int  # bytes of all adapters
    hub_share: float  # of what the hub can send, taken by loads if none were on replicas' disks
    fill_s: float  # until a hub has filled all memories anew
    first_limit: str  # what is short first when the rate grows


def size(costs: Costs, demand: Demand, hub: HubLimits) -> Sizing:
    """The fewest replicas that bear a demand. Raises GraftError where no number does."""
    cache = demand.rows * (demand.prompt + demand.new) * costs.token_bytes
    room = demand.memory - costs.base_bytes - cache
    fits = room // costs.adapter_bytes
    if fits < 1:
        raise GraftError(
            f"{bytes_text(demand.memory)} hold the base ({bytes_text(costs.base_bytes)}) and the keys and values of {demand.rows} requests "
            f"({bytes_text(cache)}), and no adapter beside them ({bytes_text(costs.adapter_bytes)}): give a replica more --memory, or "
            "fewer --rows."
        )
    shares = popularity(demand.adapters, demand.zipf)
    placed = _fewest(costs, demand, fits, shares, together=True)
    moved = placed.loads * costs.file_bytes
    held = min(placed.replicas * fits, demand.adapters)
    return Sizing(
        fits=fits,
        cache_bytes=cache,
        adapters_bytes=min(fits, demand.adapters) * costs.adapter_bytes,
        placed=placed,
        anywhere=_fewest(costs, demand, fits, shares, together=False),
        hub_disk=demand.adapters * costs.file_bytes,
        hub_share=moved / hub.bytes_a_second,
        fill_s=held * costs.file_bytes / hub.bytes_a_second,
        first_limit=_first_limit(placed, moved / hub.bytes_a_second, demand),
    )


def popularity(adapters: int, zipf: float) -> NDArray[np.float64]:
    """Which share of requests each adapter gets, the most asked for first."""
    weights = np.arange(1, adapters + 1, dtype=float) ** -zipf
    return np.asarray(weights / weights.sum())


def hit_rate(shares: NDArray[np.float64], held: int) -> float:
    """The share of requests that an LRU memory of so many adapters answers without a load."""
    if held >= len(shares):
        return 1.0
    low, high = 0.0, 1.0
    while -np.expm1(-shares * high).sum() < held:
        low, high = high, 2 * high
    for _ in range(60):  # halvings: to a double's last bits
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-shares * middle).sum() < held else (low, middle)
    return float(-(shares * np.expm1(-shares * high)).sum())


def _fewest(costs: Costs, demand: Demand, fits: int, shares: NDArray[np.float64], *, together: bool) -> Fleet:
    """By doubling, then halving: more replicas never bear less."""
    low, high = 0, 1
    while not _bears(fleet := _fleet(costs, demand, fits, shares, high, together), demand):
        low, high = high, 2 * high
        if high > MOST_REPLICAS:
            raise GraftError(
                f"{MOST_REPLICAS:,} replicas don't bear {demand.rate:g} requests a second: ask for a lower --rate."
            )
    while high - low > 1:
        middle = (low + high) // 2
        found = _fleet(costs, demand, fits, shares, middle, together)
        low, high, fleet = (low, middle, found) if _bears(found, demand) else (middle, high, fleet)
    return fleet


def _fleet(
    costs: Costs, demand: Demand, fits: int, shares: NDArray[np.float64], replicas: int, together: bool
) -> Fleet:
    hits = hit_rate(shares, replicas * fits if together else fits)
    loads = demand.rate * (1 - hits)
    work = demand.rate * costs.request(demand.rows, demand.prompt, demand.new) + loads * costs.load_work
    return Fleet(replicas, hits, loads, work / replicas, loads * costs.load / replicas)


def _bears(fleet: Fleet, demand: Demand) -> bool:
    return max(fleet.steps_busy, fleet.loads_busy) <= demand.busy


def _first_limit(fleet: Fleet, hub_share: float, demand: Demand) -> str:
    """Of what is shared out, whatever is nearest to its limit."""
    taken = {
        "the replicas' steps: add replicas": fleet.steps_busy / demand.busy,
        "loads of adapters, one by one in each replica: add memory or replicas": fleet.loads_busy / demand.busy,
        "what the hub can send: put a cache before it (docs/hub.md)": hub_share / demand.busy,
    }
    return max(taken, key=lambda what: taken[what])
