"""How threads that compute wait for each other: a short spin, then sleep. Set before OpenMP is loaded. Torch-free.

GNU's OpenMP looks 300,000 times (3 to 14 ms, a time slice) before a waiting thread sleeps. Beside another busy process
the thread it waits for has no core, for the one who waits keeps it: training took 10 times as long.
"""

import os
import sys
import warnings

SPINS = "GOMP_SPINCOUNT"
SETTINGS = (SPINS, "OMP_WAIT_POLICY")  # either says how to wait
SHORT = "30000"  # looks at what is waited for: 0.3 to 1.4 ms; the gaps between operators are mostly shorter (not than a third of it)


def wait_briefly() -> None:
    """Let OpenMP's threads spin briefly, in this process and those it starts, unless the user says how they wait.

    Warns where torch has been imported, which has loaded OpenMP.
    """
    if any(name in os.environ for name in SETTINGS):
        return
    os.environ[SPINS] = SHORT
    if "torch" in sys.modules and sys.platform == "linux":  # elsewhere it comes with another OpenMP
        warnings.warn(
            "torch was imported before graft, so its threads spin while they wait, and beside any busy process "
            f"computing may take 10 times as long. Import graft first, or set {SPINS}={SHORT} in the environment.",
            RuntimeWarning,
            stacklevel=3,
        )
