"""What one hub bears, as it was measured: see benchmarks/results/hub.json, which a test compares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubLimits:
    """`source`: where the figure comes from."""

    bytes_a_second: float
    source: str


HUB = HubLimits(1.26e9, "benchmarks/results/hub.json, 2026-11-24, 2 cores of AMD EPYC")
