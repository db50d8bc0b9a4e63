"""Values, intervals and paired tests, against numbers worked out elsewhere (textbook, scipy) and by simulation."""

import itertools

import numpy as np
import pytest

from graft.hub.errors import GraftError
from graft.hub.evaluation.metrics import (
    METRICS,
    bootstrap,
    default_metric,
    get_metric,
    mcnemar,
    paired_p,
    score,
    sign_flips,
    wilson,
)
from graft.hub.evaluation.task_data import Example


def test_values_of_every_metric():
    assert METRICS["accuracy"].values([" a", "b"], ["a ", "c"]) == [1.0, 0.0]
    assert METRICS["f1"].value("a b c", "b c d") == pytest.approx(2 / 3)
    assert METRICS["f1"].value("", "b") == 0.0
    assert METRICS["chrf"].value("the cat", "the cat") == pytest.approx(100)
    assert 0 < METRICS["chrf"].value("the cat", "the dog") < 100


@pytest.mark.parametrize(
    "ours, theirs",
    [("The  Cat.", "the cat"), (" Paris\n", "Paris"), ("STRASSE", "straße"), ("42.", "42"), ("...", "..."), ("", " ")],
)
def test_answers_that_match_exactly(ours, theirs):
    assert METRICS["exact_match"].value(ours, theirs) == METRICS["exact_match"].value(theirs, ours) == 1.0


@pytest.mark.parametrize(
    "ours, theirs",
    [
        ("<", ">"),
        ("-5", "5"),
        ("!!!", ""),
        ("a+b", "a-b"),
        ("3.5", "35"),
        ("$5", "5"),
        ("{}", "[]"),
        ("a b", "ab"),
        ("?", "!"),
    ],
)
def test_answers_that_differ(ours, theirs):
    assert METRICS["exact_match"].value(ours, theirs) == METRICS["exact_match"].value(theirs, ours) == 0.0


@pytest.mark.parametrize(
    "ours, theirs, expected",
    [
        ("", "", 1),
        ("<", ">", 0),
        ("-5", "5", 0),
        ("(Paris)", "paris.", 1),
        ("+", "-", 0),
        ("-5%", "-5%.", 1),
        ("-x", "x", 1),
    ],
)
def test_words_that_f1_counts(ours, theirs, expected):
    assert METRICS["f1"].value(ours, theirs) == METRICS["f1"].value(theirs, ours) == expected


def test_wilson_equals_the_textbook():
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 5)[0] == 0.0 and wilson(5, 5)[1] == pytest.approx(1.0)


def test_mcnemar_equals_the_binomial():
    ours, theirs = [1] * 9 + [0] * 2 + [1] * 5, [0] * 9 + [1] * 2 + [1] * 5
    assert mcnemar(ours, theirs) == pytest.approx(0.065430, abs=1e-6)  # scipy.stats.binomtest(2, 11).pvalue
    assert mcnemar([1, 0], [1, 0]) == 1.0


def test_sign_flips_find_a_difference_and_no_difference():
    random = np.random.default_rng(1)
    base = random.normal(size=80)
    assert sign_flips(base + 0.5 + random.normal(size=80) * 0.2, base) < 0.001


def test_sign_flips_equal_all_of_them():
    """Ten pairs have 1,024 flips: the exact chance is known, and 10,000 random ones come within 5 standard errors."""
    signs = np.array(list(itertools.product((1, -1), repeat=10)))
    for seed in range(5):
        ours, theirs = np.random.default_rng(seed).normal(0.3, 1, size=(2, 10)) * [[1], [0.5]]
        sums = np.abs(signs @ (ours - theirs))
        exact = np.mean(sums >= np.abs((ours - theirs).sum()) * (1 - 1e-12))
        assert sign_flips(ours, theirs) == pytest.approx(exact, abs=0.025)


def test_bootstrap_covers_the_mean():
    values = list(np.random.default_rng(0).normal(5, 1, size=400))
    low, high = bootstrap(values)
    assert low < np.mean(values) < high and high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)


def test_score_and_errors():
    found = score(METRICS["accuracy"], [1.0, 1.0, 0.0, 1.0])
    assert (found.value, found.n) == (0.75, 4) and found.low < 0.75 < found.high
    with pytest.raises(GraftError, match="no example"):
        score(METRICS["accuracy"], [])
    with pytest.raises(GraftError, match=r"Unknown metric .rouge.\..*accuracy"):
        get_metric("rouge")
    with pytest.raises(GraftError, match="same examples"):
        paired_p(METRICS["f1"], [1.0], [])
    assert default_metric([Example("a", "b", ("b", "c"))]).name == "accuracy"
    assert default_metric([Example("a", "b")]).name == "chrf"
