"""Builds the C++ kernels for this machine, once, and keeps them in the user's cache folder.

The folder's name hashes the sources, torch, Python, the compiler and the CPU's abilities, so that a new version or
another machine builds its own. Nothing is built at import: whoever starts an engine asks for `load`. It is one
source file, so it is one call of the compiler: no ninja, and no lock that a killed build leaves behind.
"""

import hashlib
import importlib.util
import logging
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from graft.server.cache.step import BLOCK_ROWS

log = logging.getLogger(__name__)

NAME = "graft_kernels"
SOURCES = Path(__file__).parent / "csrc"
FLAGS = (
    "-fno-fast-math",  # whoever has it in $CXXFLAGS: e^x rounds by adding and taking away, and a NaN has to stay one
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fopenmp",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    f"-DGRAFT_BLOCK_ROWS={BLOCK_ROWS}",
)
_lock = threading.Lock()


class BuildError(Exception):
    """Why there are no kernels on this machine."""


def cache_folder() -> Path:
    """Where built kernels lie: $GRAFT_KERNELS, else graft/kernels under the user's cache folder."""
    given = os.environ.get("GRAFT_KERNELS")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graft/kernels"


def load() -> ModuleType | None:
    """The kernels, built if need be (half a minute, once). None, with the reason logged, where they can't be.

    Raises nothing: without a compiler the engine serves through torch's own operators.
    """
    with _lock:
        return _load()


@cache
def _load() -> ModuleType | None:
    try:
        return _import(_build(_compiler()))
    except (BuildError, OSError, ImportError) as error:
        log.warning("no fast CPU kernels, serving with torch's own operators: %s", error)
        return None


def _compiler() -> str:
    wanted = os.environ.get("CXX", "c++")
    compiler = shutil.which(wanted)
    if compiler is None:
        raise BuildError(f"the C++ compiler {wanted} was not found (install g++ 12 or newer, or set CXX)")
    return compiler


def _build(compiler: str) -> Path:
    """The shared library for this machine; compiled beside its place and moved there, so it is whole or absent."""
    target = cache_folder() / _key(compiler) / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    log.info("building the CPU kernels for this machine, once, in %s", target.parent)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        done = subprocess.run(_command(compiler, fresh), capture_output=True, text=True, check=False)
        if done.returncode:
            log.debug("the compiler said:\n%s", done.stderr)
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
            raise BuildError(f"{compiler} failed: {reason}")
        os.replace(fresh, target)
    log.info("built the CPU kernels in %.0f s", time.monotonic() - started)
    return target


def _flags() -> list[str]:
    """$CXXFLAGS first: they can take back what the machine has (-mno-amx-bf16), and no way to optimise."""
    return [*shlex.split(os.environ.get("CXXFLAGS", "")), *FLAGS]


def _command(compiler: str, target: Path) -> list[str]:
    from torch.utils import cpp_extension

    includes = [f"-isystem{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    linked = ("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python")
    source = str(SOURCES / "bindings.cpp")
    return [compiler, *_flags(), abi, *includes, source, "-shared", "-o", str(target), *libraries, *linked]


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _key(compiler: str) -> str:
    """Changes whenever the built kernels would."""
    key = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        key.update(path.name.encode() + path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    for part in (torch.__version__, sys.version, version, " ".join(_flags()), _cpu()):
        key.update(part.encode())
    return key.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native depends on: the CPU's model and flags."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return "\n".join(line for line in dict.fromkeys(lines) if line.startswith(("model name", "model\t", "flags")))
