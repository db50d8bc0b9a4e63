"""A probe goes to JSON and back, a stranger's is read with limits, and what another run of it proves follows from it."""

import json
import math
from dataclasses import replace

import pytest

from graft.hub.adapters.probe import (
    Gaps,
    OldProbe,
    Probe,
    ProbeQuestion,
    ProbeText,
    ProofOutcome,
    gaps,
    judge,
    judge_old,
    judge_serving,
)
from graft.hub.adapters.probe import read_probe as read
from graft.hub.errors import ArtifactError

BASE, ADAPTER = (((-1.0, -2.0),),), (((-1.5, -2.5),),)  # an effect of size 0.707
TEXT = ProbeText("a text", ProbeQuestion((1, 2, 3), ((4, 5),)), BASE[0], ADAPTER[0])
PROBE = Probe("c0ffee", "bfloat16", (TEXT,), Gaps(1e-6, 1e-5), Gaps(0.01, 0.02))
OLD = {"dtype": "float32", "sequences": [{"tokens": [1, 2], "top_tokens": [3, 4], "top_logprobs": [-0.5, -1.5]}]}


def changed(**of_text):
    raw = PROBE.to_json()
    raw["texts"][0] |= of_text
    return raw


def moved(table, by):
    return tuple(tuple(tuple(value + by for value in row) for row in rows) for rows in table)


def test_there_and_back():
    assert read(json.loads(json.dumps(PROBE.to_json())), 10) == PROBE
    old = OldProbe("float32", (ProbeQuestion((1, 2), ((3, 4),)),), (((-0.5, -1.5),),))
    assert read(OLD, 10) == old


@pytest.mark.parametrize(
    "raw",
    [
        [],
        7,
        PROBE.to_json() | {"format": 3},
        PROBE.to_json() | {"texts": []},
        PROBE.to_json() | {"texts": PROBE.to_json()["texts"] * 9},
        PROBE.to_json() | {"content": None},
        PROBE.to_json() | {"noise": {"base": -1.0, "effect": 0.0}},
        PROBE.to_json() | {"noise": {"base": math.nan, "effect": 0.0}},
        changed(ids=[1, 10, 3]),
        changed(ids=[True, 2, 3]),
        changed(ids=[1] * 65),
        changed(ids=[]),
        changed(tokens=[[4, 5]] * 4),
        changed(tokens=[[4, 5]] * 2),
        changed(base=[[-1.0]]),
        changed(adapter=[[-1.0, math.inf]]),
        changed(adapter=[[-1e308, 1e308]]),
        changed(adapter=[[-1.0, "-2"]]),
        changed(text="a" * 1001),
        OLD | {"sequences": []},
        OLD | {"sequences": OLD["sequences"] * 9},
        OLD | {"sequences": 7},
        OLD | {"sequences": [{"tokens": [10], "top_tokens": [1], "top_logprobs": [0.0]}]},
        OLD | {"sequences": [{"tokens": [1], "top_tokens": [1, 2], "top_logprobs": [0.0]}]},
    ],
)
def test_nonsense_is_refused(raw):
    with pytest.raises(ArtifactError, match=r"probe in graft\.json is malformed"):
        read(raw, 10)


@pytest.mark.parametrize(
    "base, adapter, content, outcome, says",
    [
        (0, 0, "c0ffee", ProofOutcome.PROVEN, ""),
        (1e-6, 1e-5, "c0ffee", ProofOutcome.PROVEN, ""),
        (1e-6, 1e-4, "c0ffee", ProofOutcome.REFUSED, "its weights or config"),
        (1e-6, 1e-4, "other", ProofOutcome.ROUNDED, "another copy"),
        (1e-2, 0.06, "c0ffee", ProofOutcome.REFUSED, "the bare base answers"),
        (1e-2, 0.06, "other", ProofOutcome.ROUNDED, "another copy"),
        (1e-2, 0.3, "other", ProofOutcome.REFUSED, "its weights or config"),
        (1.0, 1.0, "other", ProofOutcome.REFUSED, "the bare base answers"),
        (0, math.nan, "c0ffee", ProofOutcome.REFUSED, "not finite"),
        (math.inf, 0, "c0ffee", ProofOutcome.REFUSED, "not finite"),
    ],
)
def test_what_is_equal_follows_from_the_measured_noise(base, adapter, content, outcome, says):
    verdict = judge(PROBE, moved(BASE, base), moved(ADAPTER, adapter), content)
    assert verdict.outcome is outcome and says in verdict.why


def test_a_verdict_tells_its_size_in_noises():
    verdict = judge(PROBE, BASE, (((-1.5 + 1e-3, -2.5),),), "c0ffee")
    assert verdict.noises == pytest.approx(100) and verdict.gap == pytest.approx(1e-3 / math.sqrt(0.5))


def test_where_noise_is_as_large_as_the_effect_nothing_is_proven():
    assert judge(replace(PROBE, noise=Gaps(1e-6, 0.2)), BASE, BASE, "c0ffee").outcome is ProofOutcome.UNPROVEN


def test_the_serving_path_shows_a_direction_or_nothing():
    def outcome(base, adapter):
        return judge_serving(PROBE, moved(BASE, base), moved(ADAPTER, adapter)).outcome

    assert outcome(0, 0) is outcome(0.01, 0.3) is ProofOutcome.PROVEN
    assert outcome(0, 0.5) is outcome(0, 0.7) is outcome(0, math.nan) is ProofOutcome.REFUSED  # no effect; another way
    assert outcome(0.2, 0.9) is ProofOutcome.UNPROVEN  # the bare base is that far off itself
    endless = (((-math.inf, math.inf),),)
    assert judge_serving(PROBE, endless, ADAPTER).outcome is ProofOutcome.UNPROVEN


def test_an_old_probe_only_tells():
    old = read(OLD, 10)
    assert judge_old(old, [((-0.5, -0.5),)]).outcome is ProofOutcome.UNPROVEN
    assert "by 1" in judge_old(old, [((-0.5, -0.5),)]).why
    assert judge_old(old, [((-0.5, math.nan),)]).outcome is ProofOutcome.REFUSED


def test_gaps_are_of_the_base_and_of_the_effect():
    # both moved alike: the effect is the same
    assert gaps((BASE, moved(BASE, 1.0)), (ADAPTER, moved(ADAPTER, 1.0))) == Gaps(math.sqrt(2), 0)
