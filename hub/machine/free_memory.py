"""How much memory this process may still take: what the machine has free, or what its container allows, whichever is less."""

from collections.abc import Iterator
from pathlib import Path

import psutil

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes. `groups`: where Linux shows its control groups (version 2); `own`: which one is this process's."""
    return min([psutil.virtual_memory().available, *_allowed(groups, own)])


def _allowed(groups: Path, own: Path) -> Iterator[int]:
    """What is left of each limit above this process; nothing where there are none, or not in this form."""
    try:
        path = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    folder = groups / path.strip("/")
    for group in (folder, *folder.parents):
        if group == groups.parent:
            return
        try:
            limit, used = (group / "memory.max").read_text().strip(), int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # the topmost one has no limit
            continue
        if limit != "max":
            # cached files count as used, and make room when somebody needs it
            yield max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
