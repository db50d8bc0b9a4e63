"""docs/architecture.md's table of rooms is what the imports say; the layers hold, and a forbidden import is noticed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hub", "server", "trainer")
ROW = "| `"


def room_of(module: str) -> str | None:
    """graft.hub.adapters.methods.lora -> hub/adapters; None for a module at the top of a package."""
    room = "/".join(module.removeprefix("graft.").split(".")[:2])
    return room if "/" in room and (ROOT / room).is_dir() else None


def imported() -> dict[str, set[str]]:
    """Room -> the other rooms it imports."""
    rooms: dict[str, set[str]] = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        if (own := room_of("graft." + ".".join(path.relative_to(ROOT).with_suffix("").parts))) is None:
            continue
        rooms.setdefault(own, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            others = {room_of(name) for name in names if name.startswith("graft.")}
            rooms[own] |= {other for other in others if other and other != own}
    return rooms


def documented() -> dict[str, set[str]]:
    rows = [line for line in (ROOT / "docs" / "architecture.md").read_text().splitlines() if line.startswith(ROW)]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {
        name.strip("`"): set(imports.replace("`", "").split())
        for name, _, imports in (row for row in cells if len(row) == 3)
        if "/" in name and (ROOT / name.strip("`")).is_dir()
    }


def test_the_picture_of_rooms_is_what_the_imports_say():
    assert documented() == imported()


def lint(root: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"],
        cwd=root, capture_output=True, text=True, env={"PYTHONPATH": str(root / "build" / "types"), "PATH": ""},
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path):
    """The packages and the contracts, to be changed."""
    pytest.importorskip("importlinter", reason="import-linter is in the extra `check`")
    links = tmp_path / "build" / "types" / "graft"
    links.mkdir(parents=True)
    for package in PACKAGES:
        subprocess.run(["cp", "-r", str(ROOT / package), str(links / package)], check=True)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("hub/base/manifest.py", "import graft.hub.registry.registry", "hub's rooms"),
        ("server/cache/blocks.py", "from graft.server.engine import scheduler", "server's rooms"),
        ("server/sampling/params.py", "import graft.trainer.plan.plan", "not each other"),
        ("server/chat/detokenizer.py", "import graft.hub.registry.search", "one seam"),
        ("server/http/app.py", "from graft.server.engine.engine import Engine", "engine's client"),
        ("trainer/training/loop.py", "import graft.hub.web.app", "Nobody imports the web"),
    ],
)
def test_a_forbidden_import_is_noticed(copy, file, line, contract):
    path = copy / "build" / "types" / "graft" / file
    path.write_text(path.read_text() + f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1
    assert any(contract in row and "BROKEN" in row for row in done.stdout.splitlines()), done.stdout
