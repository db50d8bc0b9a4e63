"""An engine as one of several that serve the same base: what they must have in common, and what it has at hand. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BaseIdentity:
    """What all replicas must agree about, so that an adapter is proven, and answers, alike on each. `content`: hash of all stored
    weights."""

    fingerprint: str
    dtype: str
    content: str


@dataclass(frozen=True)
class ReplicaState:
    """At this moment. `under_way`: requests; `limit`: those that it computes at once. `resident`: bytes in host memory of each
    adapter, by digest, `room`: for all of them; `pinned`: digests."""

    base: BaseIdentity
    under_way: int
    limit: int
    resident: Mapping[str, int]
    room: int
    pinned: tuple[str, ...]
