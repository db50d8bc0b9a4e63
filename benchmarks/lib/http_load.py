"""The load client of every server that is measured over HTTP: streamed completions, and when each event of them came.

Standard library only, one thread, and as little work an event as can be: it shares the machine with what it measures. Knows no system.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.lib.common import percentiles

TIMEOUT_S = 900.0
_RANKS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
_PIECE = 1 << 16


@dataclass(frozen=True)
class Ask:
    """One streamed completion of `tokens` tokens, `at` seconds after the start."""

    model: str
    prompt: Sequence[int]
    tokens: int
    at: float = 0.0
    fields: dict[str, float] = field(default_factory=dict)  # of the sampling

    def request(self, address: tuple[str, int]) -> bytes:
        body = {
            "model": self.model,
            "prompt": list(self.prompt),
            "max_tokens": self.tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.fields,
        }
        data = json.dumps(body).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nConnection: close\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


@dataclass
class Answer:
    """What came of an Ask. Times are of time.perf_counter."""

    sent: float
    status: int = 0  # 0: no answer
    headers: str = ""  # in lower case
    times: list[float] = field(default_factory=list)  # of every event that brought text
    tokens: int = 0  # as the server counted them
    ended: float = 0.0
    done: bool = False  # the stream said that it is complete
    error: str = ""
    nobody: bool = False  # listened

    @property
    def refused(self) -> bool:
        """In the way that a server refuses what is too much for it."""
        return self.status == 429 and self.says_when

    @property
    def says_when(self) -> bool:
        """To ask again."""
        return "\r\nretry-after:" in self.headers

    def whole(self, tokens: int) -> bool:
        return self.status == 200 and self.done and not self.error and self.tokens == tokens


class Client:
    """Requests to one server, and all that came of them."""

    def __init__(self, address: tuple[str, int]):
        self.address = address
        self.asked: list[tuple[Ask, Answer]] = []
        self.cpu_s = 0.0  # of this client
        self.wall_s = 0.0

    def at_their_times(self, asks: Sequence[Ask]) -> "Client":
        """Open loop: each goes out when it is due, whatever became of those before."""

        async def later(ask: Ask, start: float) -> None:
            await asyncio.sleep(max(0.0, start + ask.at - time.perf_counter()))
            await self._ask(ask)

        async def every() -> None:
            start = time.perf_counter()
            await asyncio.gather(*(later(ask, start) for ask in asks))

        return self._timed(every)

    def so_many_at_once(self, asks: Iterator[Ask], streams: int) -> "Client":
        """Closed loop: `streams` under way until `asks` ends."""

        async def one_after_another() -> None:
            for ask in asks:
                await self._ask(ask)

        async def every() -> None:
            await asyncio.gather(*(one_after_another() for _ in range(streams)))

        return self._timed(every)

    @property
    def broken(self) -> list[str]:
        """Of those that were neither answered whole nor refused with 429 and Retry-After: what was wrong."""
        return [
            answer.error or f"status {answer.status}, {answer.tokens} of {ask.tokens} tokens"
            for ask, answer in self.asked
            if not answer.whole(ask.tokens) and not answer.refused
        ]

    @property
    def whole(self) -> list[tuple[Ask, Answer]]:
        return [(ask, answer) for ask, answer in self.asked if answer.whole(ask.tokens)]

    def figures(self) -> dict[str, object]:
        """Times of what was answered whole in ms, rates, and the client's own CPU.

        itl_ms: between two events with text, whatever their number of tokens; token_ms: a request's mean a token after its first.
        """
        whole = self.whole
        tokens, events = sum(ask.tokens for ask, _ in whole), sum(len(answer.times) for _, answer in whole)
        return {
            "requests": len(self.asked),
            "refused": sum(answer.refused for _, answer in self.asked),
            "errors": len(self.broken),
            "first_error": next(iter(self.broken), "")[:300],
            "requests_per_s": round(len(whole) / self.wall_s, 4),
            "tokens_per_s": round(tokens / self.wall_s, 2),
            "tokens_an_event": round(tokens / max(1, events), 3),
            "client_cores": round(self.cpu_s / self.wall_s, 3),
            "client_us_a_token": round(1e6 * self.cpu_s / max(1, tokens), 1),
            **latencies(whole),
        }

    def _timed(self, run: Callable[[], Coroutine[object, object, None]]) -> "Client":
        began, cpu = time.perf_counter(), time.process_time()
        asyncio.run(run())
        self.wall_s += time.perf_counter() - began
        self.cpu_s += time.process_time() - cpu
        return self

    async def _ask(self, ask: Ask) -> None:
        self.asked.append((ask, await answered(ask, self.address)))


async def answered(ask: Ask, address: tuple[str, int]) -> Answer:
    """All that comes of it, a server that is not there or breaks off among it."""
    answer = Answer(time.perf_counter())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _read(answer, ask.request(address), address)
    except ConnectionRefusedError:
        answer.error, answer.nobody = "nobody listens", True
    except (OSError, EOFError, TimeoutError) as error:
        answer.error = repr(error)
    answer.ended = time.perf_counter()
    return answer


def latencies(whole: Sequence[tuple[Ask, Answer]]) -> dict[str, dict[str, float]]:
    """Some answers bring no text at all, of special tokens alone: they have an end, and no first token."""
    shown = [(ask, answer) for ask, answer in whole if answer.times]
    first = [answer.times[0] - answer.sent for _, answer in shown]
    gaps = [later - earlier for _, answer in shown for earlier, later in itertools.pairwise(answer.times)]
    means = [(answer.times[-1] - answer.times[0]) / (ask.tokens - 1) for ask, answer in shown if ask.tokens > 1]
    ends = [answer.ended - answer.sent for _, answer in whole]
    kinds = {"ttft_ms": first, "itl_ms": gaps, "token_ms": means, "latency_ms": ends}
    return {name: percentiles(seconds, _RANKS) for name, seconds in kinds.items() if seconds}


async def _read(answer: Answer, request: bytes, address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        answer.status, answer.headers = int(head.split(" ", 2)[1]), head.lower()
        unchunked = _Chunks() if "\r\ntransfer-encoding: chunked" in answer.headers else None
        left = b""
        while data := await reader.read(_PIECE):
            now = time.perf_counter()
            *lines, left = (left + (unchunked.feed(data) if unchunked else data)).split(b"\n")
            for line in lines:
                _event(answer, line, now)
        if answer.status != 200:
            answer.error = f"status {answer.status}: {left[:200].decode(errors='replace')}"
    finally:
        writer.close()


def _event(answer: Answer, line: bytes, now: float) -> None:
    if line.startswith(b"data: {"):
        event = json.loads(line[6:])
        answer.error = str(event["error"]) if event.get("error") else answer.error
        answer.tokens = (event.get("usage") or {}).get("completion_tokens", answer.tokens)
        if any(choice.get("text") for choice in event.get("choices", ())):
            answer.times.append(now)
    elif line.startswith(b"data: [DONE]"):
        answer.done = True


class _Chunks:
    """The body of a chunked answer, out of pieces that end anywhere."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> bytes:
        self._data += data
        found, start = [], 0
        while (line := self._data.find(b"\r\n", start)) >= 0:
            size = int(self._data[start:line].partition(b";")[0] or b"0", 16)
            end = line + 2 + size
            if len(self._data) < end + 2:
                break
            found.append(self._data[line + 2 : end])
            start = end + 2
        self._data = self._data[start:]
        return b"".join(found)
