"""Unmodified clients against a running server: each feature that their scripts use works, or ends in a 400 that names the field.

Each client is installed once, into an environment of its own under build/clients.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.clients.conftest import KINDS
from tests.server.http.learned import BASE
from tests.server.live import Live

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SCRIPTS = Path(__file__).with_name("scripts")
ENVIRONMENTS = Path(__file__).parents[3] / "build" / "clients"

# Script -> what pip is asked for
CLIENTS = {
    "openai_python": ["openai==3.57.0"],
    "anthropic_messages": ["anthropic==2.14.0"],
    "litellm_sdk": ["litellm==1.108.7"],
    "litellm_proxy": ["litellm[proxy]==1.108.7"],
    "langchain_agents": ["langchain-openai==1.7.4", "langchain"],
    "llama_index_llm": ["llama-index-llms-openai-like==0.8.1"],
    "instructor_modes": ["instructor==1.17.0"],
    "pydantic_agents": ["pydantic-ai-slim[openai]==2.38.0"],
    "agents_sdk": ["openai-agents==0.24.0"],
    "dspy_programs": ["dspy==3.4.1", "numpy"],
    "outlines_models": ["outlines==1.3.3", "openai"],
    "guidance_programs": ["guidance==0.3.1", "openai"],
    "inspect_evals": ["inspect-ai==0.3.285", "openai"],
    "lm_eval_tasks": ["lm-eval[api]==0.4.13", "pydantic"],
    "guidellm_runs": ["guidellm==0.8.1"],
}


def environment(name: str, packages: list[str]) -> Path:
    """The interpreter of a client's environment. Skips, with the command that failed, where it can't be had."""
    folder = ENVIRONMENTS / name
    python, whole = folder / "bin" / "python", folder / ".installed"
    if not whole.exists() or whole.read_text() != " ".join(packages):
        for command in (
            [sys.executable, "-m", "venv", folder],
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-300:]}")
        whole.write_text(" ".join(packages))
    return python


@pytest.mark.parametrize("name", CLIENTS)
def test_an_unmodified_client(name: str, server: Live, tmp_path: Path) -> None:
    python = environment(name, CLIENTS[name])
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "OPENAI_", "GRAFT_"))}
    settings = {
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [python, SCRIPTS / f"{name}.py", server.url, BASE, *KINDS],
        cwd=tmp_path, env=kept | settings, capture_output=True, text=True, timeout=1000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert server.idle()
