"""e^x as every kernel has it, for vectors of each width, with and without multiplication and addition in one."""

import platform
from pathlib import Path

import pytest

from tests.server.runners.cpu.conftest import run_program

PROGRAM = Path(__file__).parent / "exponent_test.cpp"


@pytest.mark.parametrize("given", ["", "-mno-avx512f", "-mno-avx", "-ffast-math"])
def test_of_all_kinds_of_numbers(given, monkeypatch, tmp_path):
    """Two units of the last place at most; a NaN stays one. Whatever $CXXFLAGS says: -ffast-math would take the rounding away."""
    if given.startswith("-mno") and platform.machine() != "x86_64":
        pytest.skip("what other machines don't have can't be taken away")
    monkeypatch.setenv("CXXFLAGS", given)
    run_program(PROGRAM, tmp_path)
