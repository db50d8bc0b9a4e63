"""The kernels' C++ under sanitizers: no read or write outside memory, nothing undefined, no race between a team's threads.

gcc's AddressSanitizer and UBSan watch the whole module, loaded into a Python of its own; ThreadSanitizer watches the team on
threads of its own (team_test.cpp), for it knows nothing of gcc's OpenMP and would call every barrier a race.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from graft.server.runners.cpu import build

HERE = Path(__file__).parent
WATCHED = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
TESTS = ("tests/server/runners/cpu", "tests/server/runners/test_runners.py", "tests/server/sampling")
CHOSEN = "threads-1 or threads-3 or fast-1 or fast-3 or (test_draws and kernels)"


@pytest.fixture(scope="module")
def compiler():
    try:
        return build._compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


def run(command, **environment):
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def compile(command, sanitizer):
    done = run(command)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip(f"this compiler has no {sanitizer}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "sanitizer",
    ["none", pytest.param("thread", marks=pytest.mark.slow), pytest.param("address,undefined", marks=pytest.mark.slow)],
)
def test_a_team_by_itself(compiler, sanitizer, tmp_path):
    """Phases, late threads, exceptions of an item and of a thread, memory that is not there."""
    program = tmp_path / "team_test"
    flags = [] if sanitizer == "none" else [f"-fsanitize={sanitizer}"]
    sources = ["-I", str(build.SOURCES), str(HERE / "team_test.cpp")]
    compile([compiler, "-std=c++20", "-O1", "-g", *flags, "-pthread", *sources, "-o", str(program)], sanitizer)
    lenient = "allocator_may_return_null=1"  # it asks for memory that is not there
    done = run([program], TSAN_OPTIONS=lenient, ASAN_OPTIONS=lenient)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel lays memory out in a way that ThreadSanitizer does not know")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_kernels_tests_run_clean_under_the_sanitizers(compiler, tmp_path):
    """Those of every kernel and of the fast runner, with one thread and with three."""
    library = tmp_path / build._key(compiler) / f"{build.NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    library.parent.mkdir()
    compile([*build._command(compiler, library), *WATCHED], "AddressSanitizer")
    found = [run([compiler, f"-print-file-name={name}.so"]).stdout.strip() for name in ("libasan", "libstdc++")]
    if not all(os.path.isabs(path) for path in found):
        pytest.skip("the compiler has no shared libasan that Python could load first")
    done = run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *TESTS, "-k", CHOSEN],
        GRAFT_KERNELS=str(tmp_path),  # where this build is taken for the one that is there already
        LD_PRELOAD=" ".join(found),
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",  # Python's own are many
        UBSAN_OPTIONS="print_stacktrace=1",
    )
    told = done.stdout[-4000:] + done.stderr[-8000:]
    assert done.returncode == 0, told
    assert "runtime error" not in told
    passed = int(done.stdout.rpartition(" passed")[0].rpartition("\n")[2])
    assert passed > 900 and "no C++ compiler" not in done.stdout
