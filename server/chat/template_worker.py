"""The process that renders one chat template which a stranger wrote (template_workers.py starts it): run as a file, not imported.

Reads requests and writes answers as frames of JSON, each after its length in 4 bytes. What it may use is bounded by the system
before it sees the template: memory, time, and no files. It has no secrets of the server's, whose environment it doesn't get.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import BinaryIO

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

MEMORY_BYTES = 256 << 20  # beyond what it takes to start
CPU_S = 2  # of one rendering
MAX_CHARS = 8 << 20  # of a prompt
NICE = 10  # steps behind the engine: several that loop would else take the cores from everybody's tokens


def main() -> None:
    frames_in, frames_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no frame
    os.nice(NICE)
    _bound(resource.RLIMIT_AS, _mapped_bytes() + MEMORY_BYTES)
    _bound(resource.RLIMIT_FSIZE, 0)
    _bound(resource.RLIMIT_CORE, 0)
    _write(frames_out, {"ready": True})
    while head := frames_in.read(4):
        request = json.loads(frames_in.read(int.from_bytes(head, "big")))
        used = resource.getrusage(resource.RUSAGE_SELF)
        _bound(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_S + 1)
        _write(frames_out, _answer(request))


RENDER: Callable[..., object] = (
    render_jinja_template  # (prompts, where the assistant's parts are), whatever it is annotated
)


def _answer(request: dict[str, object]) -> dict[str, object]:
    try:
        rendered = RENDER(**request)
        assert isinstance(rendered, tuple)
        [text] = rendered[0]
        text.encode()
    except MemoryError:
        return {"refused": "it takes too much memory"}
    except (TemplateError, RecursionError) as error:
        return {"refused": str(error)[:1000]}
    except Exception as error:  # whatever a template brings about is its own fault
        return {"refused": f"{type(error).__name__}: {error}"[:1000]}
    return {"text": text} if len(text) <= MAX_CHARS else {"refused": f"it makes more than {MAX_CHARS} characters"}


def _bound(what: int, most: int) -> None:
    """The soft limit: the process ends, or is refused, where it is passed."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _mapped_bytes() -> int:
    """What the process has mapped by now; where the system doesn't say, no limit makes sense that would be low."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 40


def _write(file: BinaryIO, frame: dict[str, object]) -> None:
    data = json.dumps(frame).encode()
    file.write(len(data).to_bytes(4, "big") + data)
    file.flush()


if __name__ == "__main__":
    main()
