"""What a process sets once in Python's interpreter, in a process of its own."""

import subprocess
import sys


def shown(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from graft.hub.machine.interpreter import *\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_thread_that_waits_gets_its_turn_within_a_millisecond() -> None:
    assert float(shown("hand_on_soon(); import sys; print(sys.getswitchinterval())")) <= 0.001


def test_the_collector_looks_at_nothing_that_was_there_and_at_what_comes() -> None:
    kept = "import gc, weakref; keep_what_is_there(); print(len(gc.get_objects()), gc.isenabled())"
    objects, enabled = shown(kept).split()
    assert int(objects) < 1000 and enabled == "True"
    later = "class A: pass\na = A(); a.a = a; gone = weakref.ref(a); del a; gc.collect(); print(gone())"
    assert shown(f"{kept}\n{later}").splitlines()[-1] == "None"


def test_rubbish_that_was_there_is_not_kept() -> None:
    before = "import weakref\nclass A: pass\na = A(); a.a = a; gone = weakref.ref(a); del a; keep_what_is_there(); print(gone())"
    assert shown(before) == "None"
