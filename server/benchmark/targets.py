"""What `graft bench` measures: an engine in this process, or a server by its URL."""

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import TypedDict
from urllib.parse import urlsplit

from graft.hub.errors import GraftError
from graft.server.benchmark.workload import BenchRequest, Timing
from graft.server.engine.client import EngineClient
from graft.server.engine.request import Finished, Request, Sink, Stream
from graft.server.sampling.params import Sampling, Token

_TIMEOUT_S = 600


class _Usage(TypedDict):
    completion_tokens: int


class _Chunk(TypedDict, total=False):
    """What is read of an event of a stream of completions."""

    choices: list[dict[str, object]]
    usage: _Usage | None


class EngineTarget:
    """An engine of this process; one thread submits and listens, so that measuring costs next to nothing."""

    def __init__(self, engine: EngineClient):
        self._engine = engine

    def run(self, jobs: Sequence[BenchRequest], at_once: int) -> list[Timing]:
        sink: Sink = SimpleQueue()
        sent: dict[Stream, float] = {}
        times: dict[Stream, list[float]] = {}
        start, left, under_way = time.perf_counter(), list(reversed(jobs)), 0
        while left or under_way:
            while left and under_way < at_once and start + left[-1].at <= time.perf_counter():
                stream = self._engine.submit(_request(left.pop()), sink)
                sent[stream], times[stream] = time.perf_counter(), []
                under_way += 1
            due = start + left[-1].at if left and under_way < at_once else None
            try:
                stream, event = sink.get(timeout=None if due is None else max(0.0, due - time.perf_counter()))
            except Empty:
                continue
            match event:
                case Token():
                    times[stream].append(time.perf_counter())
                case Finished():
                    under_way -= 1
                case GraftError():
                    raise event
        return [Timing(at, tuple(times[stream])) for stream, at in sent.items()]


def _request(job: BenchRequest) -> Request:
    return Request(job.prompt, job.model, job.new_tokens, ignore_eos=True, sampling=job.sampling)


def _sampling_fields(sampling: Sampling) -> dict[str, object]:
    """As servers call them; those that say nothing are left out, since not every server knows all."""
    fields: dict[str, object] = {"temperature": sampling.temperature}
    if sampling.top_p < 1:
        fields["top_p"] = sampling.top_p
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.logprobs is not None:
        fields["logprobs"] = sampling.logprobs
    return fields


def _address(url: str) -> tuple[str, int | None]:
    """Host and port, None for the scheme's own. Raises GraftError where there is none to be read."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port beyond 65535, half a bracket
        host = port = None
    if not host:
        raise GraftError(f"{url} is no server's URL: write http://HOST:PORT.")
    return host, port


def _token_times(events: Sequence[tuple[float, _Chunk]]) -> list[float]:
    """When each token came, of a stream's events and when those did.

    Where they say how many tokens there are so far: an event's time for each that it brought, be that several or none. Of a server
    that says so at the end only: the time of each event with a choice, as if it brought one; the finish reason's may be one too many.
    """
    counts = [(at, usage["completion_tokens"]) for at, event in events if (usage := event.get("usage"))]
    if len(counts) < 2:
        return [at for at, event in events if event.get("choices")]
    before = [0, *(count for _, count in counts)]
    return [at for (at, count), known in zip(counts, before, strict=False) for _ in range(count - known)]


class UrlTarget:
    """A server with OpenAI's completions API that takes token ids and `ignore_eos` (graft's, vLLM's)."""

    def __init__(self, url: str, key: str | None = None):
        """`key`: of a server that takes keys. Raises GraftError where nobody answers, and for what is no URL."""
        self._host, self._port = _address(url)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        self._url = urlsplit(url)
        listed = json.loads(self._answer("GET", "/v1/models", None).read())["data"]
        self._base_model = next(model["id"] for model in listed if not model.get("parent"))

    def run(self, jobs: Sequence[BenchRequest], at_once: int) -> list[Timing]:
        start = time.perf_counter()

        def one(job: BenchRequest) -> Timing:
            if (wait := start + job.at - time.perf_counter()) > 0:
                time.sleep(wait)
            return self._time_request(job)

        with ThreadPoolExecutor(min(len(jobs), at_once)) as pool:
            return list(pool.map(one, jobs))

    def load(self, model: str) -> None:
        """One token of an adapter, so that it is in the server's memory."""
        self._answer("POST", "/v1/completions", {"model": model, "prompt": [0], "max_tokens": 1}).read()

    def load_and_unload(self, model: str) -> None:
        """The same, and cold again (graft's servers)."""
        self.load(model)
        self._answer("POST", "/v1/adapters/unload", {"model": model}).read()

    def _time_request(self, job: BenchRequest) -> Timing:
        body: dict[str, object] = {
            "model": job.model or self._base_model,
            "prompt": list(job.prompt),
            "max_tokens": job.new_tokens,
            **_sampling_fields(job.sampling),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        lines: list[tuple[float, bytes]] = []
        sent = time.perf_counter()
        response = self._answer("POST", "/v1/completions", body)
        while line := response.readline():
            if line.startswith(b"data: {"):
                lines.append((time.perf_counter(), line))
        events = [(at, json.loads(line[6:])) for at, line in lines]
        told = next((usage["completion_tokens"] for _, event in reversed(events) if (usage := event.get("usage"))), 0)
        times = _token_times(events)[: job.new_tokens]
        if told != job.new_tokens or not times:
            raise GraftError(f"{self._base_url} answered {told} tokens where {job.new_tokens} were asked for.")
        return Timing(sent, tuple(times))

    @property
    def _base_url(self) -> str:
        return self._url.geturl()

    def _answer(self, method: str, path: str, body: dict[str, object] | None) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=_TIMEOUT_S)
        payload = None if body is None else json.dumps(body)
        try:
            connection.request(method, self._url.path.rstrip("/") + path, payload, self._headers)
            response = connection.getresponse()
        except OSError as error:
            raise GraftError(f"Nobody answers at {self._base_url} ({error}): is the server running?") from None
        if response.status != 200:
            raise GraftError(
                f"{self._base_url} answered {response.status}: {response.read(2000).decode(errors='replace')}"
            )
        return response
