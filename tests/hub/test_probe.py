"""A probe goes to JSON and back; a stranger's is read with limits."""

import json

import pytest

from graft.hub.errors import ArtifactError
from graft.hub.probe import Probe, ProbeSequence

PROBE = Probe("float32", (ProbeSequence((1, 2), (3, 4), (-0.5, -1.5)), ProbeSequence((9,), (0,), (-2.0,))))


def test_there_and_back():
    assert Probe.from_json(json.loads(json.dumps(PROBE.to_json())), 10) == PROBE


@pytest.mark.parametrize(
    "change",
    [
        {"sequences": []},
        {"sequences": [{"tokens": [1]}]},
        {"sequences": [{"tokens": [10], "top_tokens": [1], "top_logprobs": [0.0]}]},
        {"sequences": [{"tokens": [True], "top_tokens": [1], "top_logprobs": [0.0]}]},
        {"sequences": [{"tokens": [1] * 65, "top_tokens": [1], "top_logprobs": [0.0]}]},
        {"sequences": [{"tokens": [1], "top_tokens": [1, 2], "top_logprobs": [0.0]}]},
        {"sequences": PROBE.to_json()["sequences"] * 5},
        {"sequences": 7},
    ],
)
def test_nonsense_is_refused(change):
    with pytest.raises(ArtifactError, match="probe"):
        Probe.from_json({**PROBE.to_json(), **change}, 10)
    with pytest.raises(ArtifactError, match="malformed"):
        Probe.from_json([], 10)
