"""e^x as every kernel has it, for vectors of each width, with and without multiplication and addition in one."""

import platform
import subprocess
from pathlib import Path

import pytest

from graft.server.runners.cpu import build

PROGRAM = Path(__file__).parent / "exponent_test.cpp"


@pytest.mark.parametrize("given", ["", "-mno-avx512f", "-mno-avx", "-ffast-math"])
def test_of_all_kinds_of_numbers(given, monkeypatch, tmp_path):
    """Two units of the last place at most; a NaN stays one. Whatever $CXXFLAGS says: -ffast-math would take the rounding away."""
    if given.startswith("-mno") and platform.machine() != "x86_64":
        pytest.skip("what other machines don't have can't be taken away")
    try:
        compiler = build._compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("CXXFLAGS", given)
    made = tmp_path / "exponent_test"
    command = [compiler, *build._flags(), "-I", str(build.SOURCES), str(PROGRAM), "-o", str(made)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    done = subprocess.run([made], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
