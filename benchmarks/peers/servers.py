"""The servers that are measured over HTTP, each with what it is fastest with: graft, vLLM, llama.cpp.

All run at most so many sequences a step, and none finds prompts in a cache: no two are alike.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.harness import CACHE
from benchmarks.lib.server_process import HOST, Server
from benchmarks.peers import llama_cpp, venvs

GRAFT = str(Path(sys.executable).parent / "graft")


@dataclass(frozen=True)
class Serving:
    """What all of them are told."""

    base: str
    dtype: str
    threads: int
    running: int  # sequences in a step
    longest: int  # tokens of a sequence


def graft(told: Serving, adapters: Mapping[str, Path], *more: str) -> Server:
    command = (GRAFT, "serve", "--base", told.base, "--dtype", told.dtype, "--host", HOST)
    named = [f"--adapter={name}={folder}" for name, folder in adapters.items()]
    return Server("graft", (*command, "--max-running", str(told.running), *named, *more), "/ready")


def vllm(told: Serving) -> Server:
    """In its own venv, the bare base, compiled."""
    command = (str(venvs.vllm_python(CACHE)), "-m", "vllm.entrypoints.openai.api_server", "--model", told.base)
    command += ("--dtype", told.dtype, "--host", HOST, "--max-model-len", str(told.longest))
    command += ("--max-num-seqs", str(told.running), "--no-enable-prefix-caching", "--disable-log-stats")
    command += ("--disable-uvicorn-access-log",)
    return Server("vllm", command, environment=venvs.vllm_environment(CACHE, told.threads))


def llama(told: Serving) -> Server:
    """Of the bare base. Each sequence has a cache of its own: in one for all every token attends to all cells, and masks out those
    of others, which for 64 sequences on a CPU is most of the work."""
    model = llama_cpp.base_as_gguf(Path(told.base), CACHE, told.dtype)
    threads, context = str(told.threads), str(told.running * told.longest)
    command = (str(llama_cpp.server(CACHE)), "--model", str(model), "--host", HOST, "--no-webui", "--no-slots")
    command += ("--threads", threads, "--threads-batch", threads, "--ctx-size", context, "--no-kv-unified")
    command += ("--parallel", str(told.running), "--no-cache-prompt", "--cache-ram", "0", "--log-verbosity", "0")
    return Server("llama", command)
