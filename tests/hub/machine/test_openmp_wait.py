"""How OpenMP's threads wait is set before torch is there, unless somebody said it already."""

import os
import subprocess
import sys

import pytest

from graft.hub.machine.openmp_wait import SHORT, SPINS

SHOW = f"import os; print(os.environ.get({SPINS!r}))"


def told(code: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in (SPINS, "OMP_WAIT_POLICY")}
    return subprocess.run([sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True)


def test_every_room_and_the_command_set_it_before_torch_is_loaded() -> None:
    for room in ("hub", "trainer", "server", "hub.cli"):
        code = f"import graft.{room}, sys; assert 'torch' not in sys.modules; {SHOW}"
        done = told(code)
        assert done.stdout.strip() == SHORT and not done.stderr, (room, done.stderr)


@pytest.mark.parametrize("given", [{SPINS: "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_set_stays(given: dict[str, str]) -> None:
    done = told(
        f"import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import graft.hub; {SHOW}", **given
    )
    assert done.stdout.strip() == str(given.get(SPINS)) and not done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch comes with another OpenMP")
def test_it_is_said_once_where_torch_came_first() -> None:
    fake = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')"
    done = told(f"{fake}; import graft.trainer, graft.server; {SHOW}")
    assert done.stderr.count("torch was imported before graft") == 1 and f"{SPINS}={SHORT}" in done.stderr
    assert done.stdout.strip() == SHORT, "for the processes it starts"
