"""The command lines of the measured systems: graft, transformers, PEFT, vLLM, llama.cpp.

Every function returns a System for one workload and set of adapters; tables put them together.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lib.common import Workload
from benchmarks.lib.harness import CACHE, System
from benchmarks.peers import llama_cpp, venvs

PEERS = ("transformers", "peft", "vllm", "llama")
DEFAULT_PEERS = "transformers,peft"


def peers_of(text: str) -> set[str]:
    """Names of a comma-separated list. Raises SystemExit for an unknown one."""
    names = {name for name in text.split(",") if name}
    if names - set(PEERS):
        raise SystemExit(f"error: no peer {sorted(names - set(PEERS))}; peers: {', '.join(PEERS)}")
    return names


def graft(
    name: str, base: str, work: Workload, adapters: Sequence[Path] = (), *more: str, distinct: int | None = None
) -> System:
    """`graft bench`; request i on adapter i mod `distinct` (default: all of them; 0: loaded, unused)."""
    command = [str(Path(sys.executable).parent / "graft"), "bench", "--base", base, "--dtype", work.dtype, "--json"]
    command += ["--requests", str(work.requests)]
    command += ["--prompt-tokens", str(work.prompt_tokens), "--new-tokens", str(work.new_tokens)]
    command += ["--temperature", str(work.temperature), "--top-p", str(work.top_p)]
    command += ["--seed", "0"] if work.seeded else []
    command += [] if work.logprobs is None else ["--logprobs", str(work.logprobs)]
    if adapters:
        distinct = len(adapters) if distinct is None else distinct
        command += ["--adapters", ",".join(map(str, adapters)), "--distinct", str(distinct)]
    return System(name, (*command, *more))


def transformers(name: str, base: str, work: Workload, adapters: Sequence[Path] = (), *, repeats: int = 3) -> System:
    """transformers' generate with its best attention and cache, with PEFT where there are adapters."""
    return System(name, (sys.executable, *_script("hf_transformers", base, work, adapters, repeats)))


def vllm(
    name: str, base: str, work: Workload, adapters: Sequence[Path] = (), *, threads: int = 2, repeats: int = 3
) -> System:
    """vLLM in its own venv, with the settings it is fastest with."""
    python = str(venvs.vllm_python(CACHE))
    command = _script("vllm_engine", base, work, adapters, repeats)
    return System(name, (python, *command), venvs.vllm_environment(CACHE, threads))


def llama(
    name: str, base: str, work: Workload, adapters: Sequence[Path] = (), *, threads: int = 2, repeats: int = 3
) -> System:
    """llama.cpp's library; distinct adapters one after another, since a batch of it has one."""
    converted = [llama_cpp.lora_as_gguf(folder, Path(base), CACHE, work.dtype) for folder in adapters]
    command = ["-m", "benchmarks.peers.llama_server", "--driver", str(llama_cpp.driver(CACHE))]
    command += ["--model", str(llama_cpp.base_as_gguf(Path(base), CACHE, work.dtype)), "--workload", work.to_json()]
    command += ["--threads", str(threads), "--repeats", str(repeats)]
    command += ["--adapters", *map(str, converted)] if converted else []
    return System(name, (sys.executable, *command))


def _script(peer: str, base: str, work: Workload, adapters: Sequence[Path], repeats: int) -> tuple[str, ...]:
    command = [
        "-m",
        f"benchmarks.peers.{peer}",
        "--base",
        base,
        "--workload",
        work.to_json(),
        "--repeats",
        str(repeats),
    ]
    return (*command, *(["--adapters", *map(str, adapters)] if adapters else []))
