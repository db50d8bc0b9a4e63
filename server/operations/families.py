"""Numbers in the shape in which Prometheus collects them, made of what they are kept as. Torch-free."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Read = Mapping[str, tuple[str, Callable[[], float]]]
"""Name -> (help, how to read it)."""


def counter(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A number that only grows, by its labels' values."""
    family = CounterMetricFamily(name, text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family


def gauges(read: Read) -> Iterator[Metric]:
    """Numbers that come and go."""
    for name, (text, value) in read.items():
        yield GaugeMetricFamily(name, text, value=value())


def labelled(name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A number that comes and goes, by its labels' values."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for label, value in values:
        family.add_metric(label, value)
    return family
