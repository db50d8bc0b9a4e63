"""A container's limit counts as the machine's own."""

import psutil
import pytest

from graft.hub.machine.free_memory import free_memory

MIB = 1 << 20


@pytest.fixture
def groups(tmp_path):
    """groups(own, PATH={file: content}): a tree of control groups as Linux shows it -> what `free_memory` takes."""

    def make(own, **limits):
        top = tmp_path / "cgroup"
        for path, (limit, used, cached) in limits.items():
            folder = top / path.replace("_", "/").strip("/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text(f"{used}\n")
            (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")
        (tmp_path / "own").write_text(own)
        return top, tmp_path / "own"

    return make


def test_without_a_limit_it_is_the_machines(groups):
    for given in (groups("0::/\n"), groups("0::/a\n", a=("max", MIB, 0)), groups("4:memory:/old\n")):
        assert free_memory(*given) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        (dict(a_b=(100 * MIB, 30 * MIB, 10 * MIB)), 80 * MIB),
        (dict(a=(100 * MIB, 60 * MIB, 0), a_b=("max", 30 * MIB, 0)), 40 * MIB),  # a limit further up
        (dict(a=(100 * MIB, 60 * MIB, 0), a_b=(35 * MIB, 30 * MIB, 0)), 5 * MIB),
        (dict(_=(50 * MIB, 20 * MIB, 0)), 30 * MIB),  # as a container sees itself
        (dict(a_b=(10 * MIB, 12 * MIB, 0)), 0),
    ],
)
def test_the_narrowest_limit_counts(groups, limits, left):
    assert free_memory(*groups("0::/a/b\n", **limits)) == left
