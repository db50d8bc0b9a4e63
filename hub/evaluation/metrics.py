"""Metrics: a value an example, their mean, its confidence interval, and whether one system beats another.

Every metric is a mean over examples, so intervals and paired tests need nothing but the values. Torch-free.
Knows nothing of models: predictions come in as text.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from graft.hub.errors import GraftError
from graft.hub.evaluation.task_data import Example

if TYPE_CHECKING:
    from sacrebleu.metrics import CHRF

_RESAMPLES = 10_000  # of the permutation test
_BOOTSTRAPS = 2_000
_ENDINGS = ".,;:!? "  # what an answer may end with or not
_AROUND = re.compile(r"^(?![+-]\d)[^\w]+|[^\w%]+$")
_Z95 = 1.959963984540054  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Metric:
    """`value(prediction, reference)` scores one example.

    `answers` says how predictions are made: "labels" (the most probable choice) or "text" (greedy generation). Every value
    lies within [least, most].
    """

    name: str
    title: str
    answers: str
    binary: bool  # values are 0 or 1
    value: Callable[[str, str], float]
    lower_is_better: bool = False
    least: float = 0.0
    most: float = 1.0

    def values(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        return [self.value(ours, theirs) for ours, theirs in zip(predictions, references, strict=True)]


@dataclass(frozen=True)
class Score:
    """A metric's mean over `n` examples with its 95 % confidence interval."""

    metric: str
    value: float
    low: float
    high: float
    n: int


def _equality(prediction: str, reference: str) -> float:
    return float(prediction.strip() == reference.strip())


def _exact_match(prediction: str, reference: str) -> float:
    """Equal but for letter case, white space, and how the answer ends: "The  Cat." equals "the cat", "-5" not "5"."""
    return float(_answer(prediction) == _answer(reference))


def _answer(text: str) -> str:
    plain = " ".join(text.casefold().split())
    return plain.rstrip(_ENDINGS) or plain


def _f1(prediction: str, reference: str) -> float:
    """Of the words that the two share; both empty are equal (Rajpurkar et al. 2016, section 6.1)."""
    ours, theirs = Counter(_words(prediction)), Counter(_words(reference))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _chrf(prediction: str, reference: str) -> float:
    return _sentence_chrf().sentence_score(prediction, [reference]).score


@cache
def _sentence_chrf() -> "CHRF":
    from sacrebleu.metrics import CHRF  # a slow import that scoring labels never needs

    return CHRF()


def _words(text: str) -> list[str]:
    """Without the punctuation around a word, but for a number's sign; a word of nothing but signs stays as it is."""
    return [_AROUND.sub("", word) or word for word in text.casefold().split()]


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "Accuracy", "labels", True, _equality),
        Metric("exact_match", "Exact match", "text", True, _exact_match),
        Metric("f1", "Word F1", "text", False, _f1),
        Metric("chrf", "chrF2, mean over sentences (0 to 100)", "text", False, _chrf, most=100.0),
    )
}


def hash_predictions(predictions: Sequence[str]) -> str:
    """sha256 hex of what a system answered, example by example: two runs that answer alike have the same."""
    return hashlib.sha256(json.dumps(list(predictions)).encode()).hexdigest()


def get_metric(name: str) -> Metric:
    """The metric called `name`. Raises GraftError listing the known ones."""
    if name not in METRICS:
        raise GraftError(f"Unknown metric {name!r}. Known: {', '.join(METRICS)}.")
    return METRICS[name]


def default_metric(examples: Sequence[Example]) -> Metric:
    """accuracy where every example lists its labels, else chrf."""
    return METRICS["accuracy" if all(example.labels for example in examples) else "chrf"]


def score(metric: Metric, values: Sequence[float]) -> Score:
    """The mean with its interval: Wilson's for 0/1 values, else a percentile bootstrap."""
    if not values:
        raise GraftError("There is no example to score.")
    low, high = wilson(sum(values), len(values)) if metric.binary else bootstrap(values)
    return Score(metric.name, math.fsum(values) / len(values), low, high, len(values))


def wilson(successes: float, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson's interval of a proportion; z=1.96 for 95 %."""
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean over resampled examples."""
    data = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    means = [data[random.integers(len(data), size=len(data))].mean() for _ in range(_BOOTSTRAPS)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_p(metric: Metric, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p that two systems differ on the same examples: McNemar's exact test, or sign flips."""
    if len(ours) != len(theirs):
        raise GraftError(f"A paired test needs the same examples: {len(ours)} and {len(theirs)} were scored.")
    return mcnemar(ours, theirs) if metric.binary else sign_flips(ours, theirs)


def mcnemar(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Exact McNemar: a binomial test over the examples that only one of the two has right."""
    wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
    losses = sum(a < b for a, b in zip(ours, theirs, strict=True))
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**n) if n else 1.0


def sign_flips(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> float:
    """Paired permutation test of the mean difference: how often random signs do as well."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    random = np.random.default_rng(seed)
    observed, reached = abs(difference.sum()) * (1 - 1e-12), 0
    for _ in range(_RESAMPLES):
        signs = random.integers(2, size=len(difference)) * 2 - 1
        reached += abs((signs * difference).sum()) >= observed
    return float((reached + 1) / (_RESAMPLES + 1))
