"""How many rows a step has, by how fast steps were."""

import pytest

from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.operations.step_pace import HELD_S, StepPace
from graft.server.sampling.params import Sampling

LEAST, MOST = 136, 2048


@pytest.mark.parametrize(
    "row_s, rows", [(1e-5, MOST), (HELD_S / 1000, 1000), (HELD_S / 200, 200), (0.05, LEAST), (60, LEAST)]
)
def test_rows_follow_from_the_time_of_one(row_s, rows):
    """From whatever it begins with, on machines that differ by a million times."""
    pace = StepPace(LEAST, MOST)
    for _ in range(12):
        assert LEAST <= pace.rows <= MOST
        pace.took(pace.rows, pace.rows * row_s, prompts=True)
    assert pace.rows == pytest.approx(rows, abs=1)


def test_a_machine_that_slows_down_and_comes_back():
    pace = StepPace(LEAST, MOST)

    def steps(row_s, count):
        for _ in range(count):
            pace.took(pace.rows, pace.rows * row_s, prompts=True)
        return pace.rows

    fast = steps(HELD_S / 1000, 8)
    assert steps(HELD_S / 500, 8) == pytest.approx(500, rel=0.05)
    assert steps(HELD_S / 1000, 8) == pytest.approx(fast, rel=0.05)


def test_one_step_that_stood_still_is_soon_forgotten():
    pace = StepPace(LEAST, MOST)
    for _ in range(8):
        pace.took(pace.rows, pace.rows * HELD_S / 1000, prompts=True)
    pace.took(1000, 60.0, prompts=True)
    assert pace.rows == LEAST
    for _ in range(12):
        pace.took(pace.rows, pace.rows * HELD_S / 1000, prompts=True)
    assert pace.rows > 900


def test_small_steps_say_nothing_of_a_row():
    """Theirs is the time of reading the weights."""
    pace = StepPace(LEAST, MOST)
    pace.took(LEAST, HELD_S * LEAST / MOST, prompts=True)
    assert pace.rows == MOST
    pace.took(8, HELD_S, prompts=True)
    assert pace.rows == MOST


@pytest.mark.parametrize("others_s, rows", [(0.0, 1000), (0.25, 667), (0.8, 1067), (1.5, 2000)])
def test_what_others_tokens_take_anyway_is_not_the_prompts(others_s, rows):
    """What is left of the time, but as long again as the others take alone: a prompt must get on beside them."""
    pace, row_s = StepPace(LEAST, MOST), HELD_S / 1000
    for _ in range(20):
        pace.took(72, others_s, prompts=False)
        pace.took(pace.rows, others_s + pace.rows * row_s, prompts=True)
    assert pace.rows == pytest.approx(rows, rel=0.02)


@pytest.mark.parametrize("first", [True, False], ids=["prompts first", "others first"])
def test_it_finds_out_which_time_is_whose(first):
    """Also where the first steps have prompts, and nobody knows yet what a step takes without."""
    pace = StepPace(LEAST, MOST)
    for step in range(40):
        prompts = (step % 4 == 0) if first else (step % 4 == 3)
        rows = pace.rows if prompts else 72
        pace.took(rows, 0.8 + (rows - 72) * HELD_S / 1000, prompts=prompts)
    assert pace.rows > 900


def test_a_set_number_of_rows_stays():
    pace = StepPace(256, 256)
    pace.took(256, 60.0, prompts=True)
    assert pace.rows == 256


@pytest.mark.parametrize("rows", [None, 96])
def test_an_engine_learns_it_from_its_prompts(llama, rows):
    """A tiny base is fast enough for the most; what is set by hand is kept to."""
    options = Options(max_running=4, step_rows=rows, max_model_len=llama.spec.max_positions)
    with Engine(llama, options=options) as engine:
        assert engine.scheduler.step_rows == (rows or 4 + 1 + 64)
        prompt = tuple(5 + i % 40 for i in range(llama.spec.max_positions - 8))
        for first in range(40):  # one that had to wait for a core is forgotten
            engine.generate([Request((first + 5, *prompt), max_tokens=1, sampling=Sampling(temperature=0))] * 2)
            if engine.scheduler.step_rows == 4 + 1 + 1024:
                break
        assert engine.scheduler.step_rows == (rows or 4 + 1 + 1024)
