"""How much time proofs get: what docs/serving.md publishes."""

import pytest

from graft.server.adapters.prover import Prover
from graft.server.adapters.time_slices import TimeSlices

TURN_S, SHARE = 0.01, 1 / 16


@pytest.fixture
def prover(llama, monkeypatch):
    """With the turns that it has given, in seconds; none takes any."""
    given = []
    monkeypatch.setattr(TimeSlices, "go", lambda turns, seconds: given.append(seconds))
    prover = Prover(llama)
    prover.given = given
    yield prover
    prover.close()


@pytest.mark.parametrize("step_s", [1e-4, 0.003, 0.02, 0.1])
def test_beside_steps_proofs_get_their_share_in_short_turns(prover, step_s):
    steps = 1000
    for _ in range(steps):
        prover.beside(step_s)
    owed = steps * step_s * SHARE
    assert max(prover.given) <= TURN_S
    assert owed - TURN_S <= sum(prover.given) <= owed * (1 + 1e-9)


def test_a_long_step_is_followed_by_one_turn_and_owes_no_more(prover):
    for step_s in (30.0, 1e-6, 1e-6, 30.0):
        prover.beside(step_s)
    assert prover.given == [TURN_S, TURN_S]


def test_an_idle_engine_gives_whole_turns(prover):
    prover.turn()
    assert prover.given == [TURN_S]
