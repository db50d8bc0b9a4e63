"""Unmodified clients in JavaScript, each installed once into a folder of its own under build/clients."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.server.clients.conftest import KINDS
from tests.server.clients.test_python_clients import ENVIRONMENTS
from tests.server.http.learned import BASE
from tests.server.live import Live

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPTS = Path(__file__).with_name("node")

# Script -> what npm is asked for
CLIENTS = {
    "openai": ["openai@7.57.0", "zod@4"],
    "ai_sdk": ["ai@7.0.173", "@ai-sdk/openai-compatible@3.0.92", "@ai-sdk/openai@4.0.118", "zod@4"],
}


@pytest.mark.parametrize("name", CLIENTS)
def test_an_unmodified_client(name: str, server: Live) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node, or no npm, on this machine")
    folder = ENVIRONMENTS / f"node-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "package-lock.json").exists():
        (folder / "package.json").write_text("{}")
        command = ["npm", "install", "--no-fund", "--no-audit", *CLIENTS[name]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    script = shutil.copy(SCRIPTS / f"{name}.mjs", folder)  # node looks for packages from where a script lies
    done = subprocess.run(
        ["node", script, server.url, BASE, *KINDS], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert server.idle()
