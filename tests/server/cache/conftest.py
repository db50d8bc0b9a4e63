"""What the system can do with memory."""

import platform
import re
import sys

import pytest

RELEASE = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
populates = pytest.mark.skipif(
    sys.platform != "linux" or RELEASE < (5, 14), reason="madvise(MADV_POPULATE_WRITE) needs Linux 5.14"
)
