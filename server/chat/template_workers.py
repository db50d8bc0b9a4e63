"""Chat templates of strangers (an adapter's, or a request's own), each rendered in a process of its own.

A template is a program. In a sandbox it can still loop and grow without end, so it runs where that costs nobody else
anything: a process with bounded memory and time, which is killed when it takes too long. A template has a process for as long as
it is among the last that were asked for, and shares it with nobody meanwhile.
"""

import json
import os
import select
import subprocess
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, Lock
from typing import IO

from graft.hub.chat.conversation import Conversation, TemplateRefusalError, tool_variables
from graft.server.errors import BrokenError, BusyError
from graft.server.operations.children import sheltered

START_S = 30.0  # for a process to come up on a busy machine
RENDER_S = 10.0  # for one rendering, at a clock; its share of a core's time is bounded in the process itself
_MOST_TEMPLATES = 200  # that one process serves, one after another: what it keeps of each takes memory
_MAX_FRAME = 64 << 20
_WORKER = Path(__file__).with_name("template_worker.py")
_PASSED_ON = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "SYSTEMROOT",
)


class _Broken(Exception):
    """The process has ended, or is to be ended. The words say why, of the template."""


class _Process:
    """One template's."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with sheltered():
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        self._ready = False
        self._templates = 1

    def render(self, request: Mapping[str, object]) -> str:
        """Raises _Broken where the process is of no more use, TemplateRefusalError with the template's own words, BrokenError
        where it doesn't come up."""
        if not self._ready:
            self._start()
        until = time.monotonic() + RENDER_S
        self._write(json.dumps(request).encode(), until)
        try:
            answer = json.loads(self._read(until))
        except ValueError:
            raise _Broken("its process answers nonsense") from None
        if not isinstance(answer, dict) or not isinstance(text := answer.get("text"), str):
            raise TemplateRefusalError(str(answer.get("refused") if isinstance(answer, dict) else answer))
        return text

    def take_over(self) -> bool:
        """For another template; False where it has served so many that a new process is better."""
        self._templates += 1
        return self._templates < _MOST_TEMPLATES

    def _start(self) -> None:
        try:
            self._read(time.monotonic() + START_S)
        except _Broken:
            raise BrokenError(f"A process for chat templates does not come up: run {_WORKER} to see why.") from None
        self._ready = True

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()

    def _write(self, data: bytes, until: float) -> None:
        left = memoryview(len(data).to_bytes(4, "big") + data)
        while left:
            self._await(self._in, until, writing=True)
            try:
                left = left[os.write(self._in.fileno(), left) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _Broken("it ended its process") from None

    def _read(self, until: float) -> bytes:
        size = int.from_bytes(self._take(4, until), "big")
        if size > _MAX_FRAME:
            raise _Broken("it makes too much")
        return self._take(size, until)

    def _take(self, size: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._await(self._out, until)
            piece = os.read(self._out.fileno(), size - len(data))
            if not piece:
                raise _Broken("it takes too long, or too much memory")
            data += piece
        return bytes(data)

    def _await(self, pipe: IO[bytes], until: float, *, writing: bool = False) -> None:
        poll = select.poll()  # select() ends at 1024 files
        poll.register(pipe.fileno(), select.POLLOUT if writing else select.POLLIN)
        if not poll.poll(1000 * max(0.0, until - time.monotonic())):
            raise _Broken("it takes too long")


@dataclass
class _Place:
    """A template's process, if there is one, and the right to use it."""

    lock: Lock = field(default_factory=Lock)
    process: _Process | None = None
    users: int = 0


class TemplateWorkers:
    """Safe for many threads. Its processes end with it."""

    def __init__(self, most: int) -> None:
        """`most`: templates that have a process at a time."""
        self._most = most
        self._places: OrderedDict[str, _Place] = OrderedDict()  # by a template's text, least recently used first
        self._changed = Condition()
        weakref.finalize(self, _end_all, self._places)

    def render(
        self, template: str, whose: str, special_tokens: Mapping[str, object], conversation: Conversation
    ) -> str:
        """The prompt's text. Raises TemplateRefusalError, BusyError where too many other templates are being rendered."""
        request = {
            **special_tokens,
            **tool_variables(template, conversation.tools),
            **conversation.variables,
            "conversations": [[dict(turn) for turn in conversation.turns]],
            "tools": [dict(tool) for tool in conversation.tools] or None,
            "chat_template": template,
            "add_generation_prompt": conversation.opens_reply,
            "continue_final_message": conversation.continues,
        }
        place = self._enter(template)
        try:
            if not place.lock.acquire(timeout=RENDER_S):
                raise BusyError(f"{whose} takes too long for all who ask: try again in a moment.")
            try:
                return self._render(place, whose, request)
            finally:
                place.lock.release()
        finally:
            self._leave(place)

    def _render(self, place: _Place, whose: str, request: Mapping[str, object]) -> str:
        """With the place's lock."""
        place.process = place.process or _Process()
        try:
            return place.process.render(request)
        except _Broken as error:
            self._end(place)
            raise TemplateRefusalError(f"{whose} can't be used for these messages: {error}.") from None
        except BrokenError:
            self._end(place)
            raise
        except TemplateRefusalError as error:
            raise TemplateRefusalError(f"{whose} refuses these messages: {error}.") from None

    @staticmethod
    def _end(place: _Place) -> None:
        if place.process is not None:
            place.process.end()
        place.process = None

    def _enter(self, template: str) -> _Place:
        """The template's place; to a new one the least recently used idle one's process goes over."""
        left: _Process | None = None
        with self._changed:
            until = time.monotonic() + RENDER_S
            while template not in self._places and len(self._places) >= self._most:
                idle = next((text for text, place in self._places.items() if not place.users), None)
                if idle is not None:
                    left = self._places.pop(idle).process
                elif not self._changed.wait(max(0.0, until - time.monotonic())) and time.monotonic() >= until:
                    raise BusyError("Too many chat templates are being rendered: try again in a moment.")
            if left is not None and not left.take_over():
                left.end()
                left = None
            place = self._places.setdefault(template, _Place(process=left))
            self._places.move_to_end(template)
            place.users += 1
        return place

    def _leave(self, place: _Place) -> None:
        with self._changed:
            place.users -= 1
            self._changed.notify_all()


def _end_all(places: OrderedDict[str, _Place]) -> None:
    for place in places.values():
        if place.process is not None:
            place.process.end()
