"""The engine: one thread that owns the base and turns requests into tokens, step by step.

Messages (requests, cancellations, loaded adapters) come in through an inbox; tokens leave through streams. Each step
is planned by the scheduler, carried out by the runner, and handed to whoever its rows belong to. A failing step costs
its own requests an error, and nobody else anything.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from torch import Tensor

from graft.hub.adapters.probe import ProbeQuestion, Table
from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.hub.machine.compute_threads import ComputeThreads
from graft.server.adapters.device import VIRTUAL_SHARE, DeviceTier
from graft.server.adapters.host import HostTier, Loaded, LoadResult
from graft.server.adapters.names import AdapterNames, Shelf
from graft.server.adapters.prover import Prover
from graft.server.adapters.resident import Resident
from graft.server.cache.blocks import BlockPool
from graft.server.cache.step import BLOCK_ROWS, make_batch
from graft.server.cache.tensors import KVCache
from graft.server.engine.adapter_proof import Proof
from graft.server.engine.consumers import Asked, Consumer, RowsJob, RunningRequest, ends_of, not_finite_error
from graft.server.engine.inbox import Inbox
from graft.server.engine.options import Options, sizes
from graft.server.engine.request import Request, Result, Sink, Stream
from graft.server.engine.scheduler import Scheduler, SequenceState, StepPlan
from graft.server.errors import BrokenError, ClosedError, RequestError, TooLongError
from graft.server.runners.factory import make_runner
from graft.server.runners.protocol import Prepared
from graft.server.sampling.params import StepResult
from graft.server.served_version import Served
from graft.server.telemetry import Metrics

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Engine:
    """Serves a base and any adapters of it. Start one a process; `close` it when done (or use it in a `with`)."""

    def __init__(
        self,
        base: Base,
        adapters: Mapping[str, str | Path] | None = None,
        shelf: Shelf | None = None,
        options: Options | None = None,
    ):
        """`adapters`: NAME -> folder. `shelf`: where other names are looked up. Loads nothing yet."""
        self.base = base
        self.options = options or Options()
        self.sizes = sizes(self.options, base)
        self.metrics = Metrics()
        self.ends = ends_of(base)
        local = {name: Path(folder) for name, folder in (adapters or {}).items()}
        self.library = AdapterNames(base.spec.fingerprint, local, shelf)
        self.prover = Prover(base)
        self.loader = HostTier(
            base,
            self.library,
            self.prover,
            budget_bytes=self.sizes.host_bytes,
            allow_base_mismatch=self.options.allow_base_mismatch,
            on_load=self.metrics.loaded,
        )
        self.blocks = BlockPool(self.sizes.blocks)
        cache = KVCache(base.spec, self.sizes.blocks, base.dtype, base.device)
        self.runner = make_runner(self.options.runner, base, cache)
        self.residency = DeviceTier(
            self.runner, self.blocks, self, budget_bytes=self.sizes.device_bytes, pinned=self.loader.pinned
        )
        self.scheduler = Scheduler(
            self.blocks,
            step_rows=self.sizes.step_rows,
            max_running=self.options.max_running,
            prefix_sharing=self.options.prefix_sharing,
            adapters=self.residency,
        )
        self.metrics.gauges(self._gauges())
        self._consumers: dict[SequenceState, Consumer] = {}
        self._unplaced: set[RunningRequest] = set()  # their adapters are being loaded
        self._base_said: dict[tuple[ProbeQuestion, ...], Sequence[Table]] = {}  # to probes' questions, on this runner
        self._inbox = Inbox()
        self._closing = False
        self.steps = 0
        self._thread = threading.Thread(target=self._live, name="graft-engine", daemon=True)
        self._thread.start()

    # For callers, on any thread

    def submit(self, request: Request, sink: Sink | None = None) -> Stream:
        """Queue a request. `sink`: a queue for the events of several streams (requests.Stream).

        Raises RequestError where the request can't be served as it stands, ClosedError after `close`.
        """
        self._check(request)
        if self._closing:
            raise ClosedError("The server is shutting down.")

        def cancel() -> None:
            with suppress(ClosedError):  # then it has ended anyway
                self._inbox.put(lambda: self._cancel(generation))

        stream = Stream(request, cancel, sink or SimpleQueue())
        generation = RunningRequest(stream, self.ends, self.metrics)
        self._inbox.put(lambda: self._unplaced.add(generation))
        if request.model is None:
            self._inbox.put(lambda: self._place(generation, None))
        else:
            self.loader.request(request.model, lambda answer: self._inbox.put(lambda: self._place(generation, answer)))
        return stream

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Serve requests together and wait for all. Raises the first one's error, the others cancelled."""
        streams: list[Stream] = []
        try:
            for request in requests:
                streams.append(self.submit(request))
            return [stream.result() for stream in streams]
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise

    def call(self, question: Callable[[], Value]) -> Value:
        """Ask something on the engine's thread, between steps, and wait for the answer.

        Raises what the question raises, ClosedError after `close`.
        """
        answer: Future[Value] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except Exception as error:
                answer.set_exception(error)

        self._inbox.put(ask)
        return answer.result()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing

    def close(self) -> None:
        """End: requests under way get ClosedError. Idempotent."""
        if not self._closing:
            self._closing = True
            self._inbox.put(lambda: None)  # wakes the thread
        self._thread.join()
        self.loader.close()
        self.prover.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, request: Request) -> None:
        if not request.prompt:
            raise RequestError("The prompt is empty: the first token needs something to follow.")
        vocabulary = self.base.spec.vocab_size
        if not all(0 <= id < vocabulary for id in (*request.prompt, *request.score_next)):
            raise RequestError(f"A prompt token lies outside the base's vocabulary of {vocabulary}.")
        self._new_tokens(request, 0)

    def _new_tokens(self, request: Request, virtual: int) -> int:
        """How many tokens a request may get beside an adapter's virtual ones. Raises TooLongError without room."""
        usable = (self.blocks.count - 1) - (self.blocks.count - 1) // VIRTUAL_SHARE - 1
        prompt = len(request.prompt)
        room = min(self.sizes.max_model_len, usable * BLOCK_ROWS) - prompt - virtual
        new = max(1, room) if request.max_tokens is None else request.max_tokens
        total = prompt + new + virtual
        beside = f" and the adapter's {virtual} virtual tokens" if virtual else ""
        if total > self.sizes.max_model_len:
            raise TooLongError(
                f"{prompt} prompt tokens{beside} and max_tokens={new} make {total}; "
                f"this server takes up to {self.sizes.max_model_len}."
            )
        if total > usable * BLOCK_ROWS:
            raise TooLongError(f"{total} tokens don't fit into the KV cache ({usable * BLOCK_ROWS}; --kv-bytes).")
        return new

    # What the device tier asks (AdapterWork)

    def prepare(self, loaded: Loaded, done: Callable[[Prepared | GraftError], None]) -> None:
        def work() -> None:
            made: Prepared | GraftError
            try:
                made = self.runner.prepare(loaded.detours)
            except Exception as error:
                log.exception("preparing %s failed", loaded.digest)
                made = BrokenError(f"The adapter can't be brought to the device: {type(error).__name__}: {error}")
            self._inbox.put(lambda: done(made))

        self.loader.run_later(work)

    def take_blocks(self, n: int, digest: str) -> list[int]:
        return self.scheduler.take(n, digest)

    def run_rows(self, resident: Resident, rows: Tensor, done: Callable[[list[int] | GraftError], None]) -> None:
        self._start(RowsJob(resident, rows, done, self.scheduler.detach))

    def prove(self, resident: Resident, done: Callable[[GraftError | None], None]) -> None:
        Proof(resident, self._start, self.prover, self._base_said, done).begin()

    def ready(self, digest: str) -> None:
        self.scheduler.wake(digest)

    def tokens_left(self) -> Mapping[str, int]:
        return self.scheduler.tokens_left()

    def refused(self, digest: str, error: GraftError) -> None:
        self.loader.refuse(digest, error)
        self._inbox.put(lambda: self._fail_owner(digest, error))

    # The engine's thread

    def _live(self) -> None:
        with ComputeThreads() as threads:
            while not self._closing:
                if self.runner.meets_often:
                    threads.fit()
                self._turn()
        for message in self._inbox.close():
            self._handle(message)
        gone = ClosedError("The server is shutting down.")
        for consumer in [*self._consumers.values(), *self._unplaced]:
            if isinstance(consumer, RunningRequest):
                consumer.fail(gone)

    def _turn(self) -> None:
        """Read what has come in, and do what there is to do, or wait for it."""
        busy = self.scheduler.running or self.scheduler.waiting
        for message in self._inbox.take(wait=not busy and not self.prover.busy):
            self._handle(message)
        self.residency.attend()
        plan = self.scheduler.plan()
        if plan.chunks:
            began = time.monotonic()
            self._step(plan)
            if self.prover.busy:
                self._handle(partial(self.prover.beside, time.monotonic() - began))
        elif self.prover.busy:
            self._handle(self.prover.turn)
        elif busy:  # an adapter is on its way in
            for message in self._inbox.take(wait=True, timeout=0.05):
                self._handle(message)

    def _handle(self, message: Callable[[], None]) -> None:
        try:
            message()
        except Exception:
            log.exception("the engine could not handle a message")

    def _place(self, generation: RunningRequest, answer: LoadResult | None) -> None:
        """The adapter is in host memory (or there is none, or an error): schedule the request."""
        self._unplaced.discard(generation)
        loaded, served = (None, Served()) if answer is None or isinstance(answer, GraftError) else answer
        if generation.cancelled:
            if loaded:
                self.loader.release(loaded)
            return
        if isinstance(answer, GraftError):
            generation.fail(answer)
            return
        try:
            new = self._new_tokens(generation.stream.request, loaded.virtual_rows if loaded else 0)
            if loaded:
                self.residency.check(loaded)
        except GraftError as error:
            generation.fail(error)
            if loaded:
                self.loader.release(loaded)
            return
        sequence = generation.begin(loaded, served, new)
        if sequence.remaining <= 0:
            generation.finish()
            if loaded:
                self.loader.release(loaded)
            return
        if loaded:
            self.residency.expect(loaded)
        self._start(generation)

    def _start(self, consumer: Consumer) -> None:
        self._consumers[consumer.sequence] = consumer
        self.scheduler.add(consumer.sequence)

    def _end(self, consumer: Consumer) -> bool:
        """Take a consumer's sequence out; False where it is out already."""
        if self._consumers.pop(consumer.sequence, None) is None:
            return False
        if not consumer.keeps_blocks:
            self.scheduler.remove(consumer.sequence)
        if consumer.loaded is not None:
            self.loader.release(consumer.loaded)
        return True

    def _finish(self, consumer: Consumer) -> None:
        if self._end(consumer):
            consumer.finish()

    def _fail(self, consumer: Consumer, error: GraftError) -> None:
        if self._end(consumer):
            if consumer.keeps_blocks:
                self.scheduler.remove(consumer.sequence)
            consumer.fail(error)

    def _fail_owner(self, digest: str, error: GraftError) -> None:
        for consumer in [c for c in self._consumers.values() if c.loaded is not None and c.loaded.digest == digest]:
            self._fail(consumer, error)

    def _cancel(self, generation: RunningRequest) -> None:
        if generation in self._unplaced:
            self._unplaced.discard(generation)
            generation.cancel()
        elif self._consumers.get(generation.sequence) is generation:
            self._end(generation)
            generation.cancel()

    def _step(self, plan: StepPlan) -> None:
        self.steps += 1
        chunks = plan.chunks
        try:
            batch, order = make_batch([(chunk.sequence.owner, chunk.run()) for chunk in chunks], plan.copies)
            consumers = [self._consumers[chunks[i].sequence] for i in order]
            asked = [consumer.ask(chunks[i]) for i, consumer in zip(order, consumers, strict=True)]
            firsts = [0, *accumulate(run.logits for run in batch.runs)]  # of each chunk's rows that want logits
            draws = [(last - 1, ask.draw) for last, ask in zip(firsts[1:], asked, strict=True) if ask.draw]
            scores = [
                (first + row, score) for first, ask in zip(firsts, asked, strict=False) for row, score in ask.scores
            ]
            self._deliver(consumers, asked, self.runner.step(batch, draws, scores))
        except Exception as error:
            log.exception("a step failed")
            self.scheduler.withdraw(plan)
            failure = error if isinstance(error, GraftError) else BrokenError(f"A step failed: {error}")
            for chunk in chunks:
                if chunk.sequence in self._consumers:
                    self._fail(self._consumers[chunk.sequence], failure)

    def _deliver(self, consumers: Sequence[Consumer], asked: Sequence[Asked], result: StepResult) -> None:
        """Hand out what has come of a step, and see who is done."""
        tokens, scores = iter(result.tokens), iter(result.scores)
        for consumer, ask in zip(consumers, asked, strict=True):
            scored = [next(scores) for _ in ask.scores]
            token = next(tokens) if ask.draw else None
            if None in scored or (ask.draw and token is None):
                self._fail(consumer, not_finite_error())
                continue
            for tokens_of_row in filter(None, scored):
                consumer.observe(tokens_of_row)
            done = consumer.accept(token) if token is not None else consumer.sequence.remaining <= 0
            if done:
                self._finish(consumer)

    def _gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        blocks, scheduler, loader, residency = self.blocks, self.scheduler, self.loader, self.residency
        return {
            "graft_requests_running": ("Requests in the present step", lambda: scheduler.running),
            "graft_requests_waiting": ("Requests not admitted yet", lambda: scheduler.waiting),
            "graft_preemptions": ("Requests that gave up their blocks", lambda: scheduler.preemptions),
            "graft_cache_blocks_used": ("KV cache blocks in use", lambda: blocks.used),
            "graft_cache_blocks": ("KV cache blocks", lambda: blocks.count - 1),
            "graft_prefix_blocks_found": ("Prompt blocks found in the cache", lambda: blocks.hits),
            "graft_prefix_blocks_computed": ("Shareable prompt blocks computed", lambda: blocks.misses),
            "graft_adapter_host_bytes": ("Adapters in host memory", lambda: loader.bytes),
            "graft_adapter_device_bytes": ("Adapters on the device", lambda: residency.bytes),
            "graft_adapter_hits": ("Requests whose adapter was in host memory", lambda: loader.stats.hits),
            "graft_adapter_misses": ("Requests that began a load", lambda: loader.stats.misses),
            "graft_adapter_load_failures": ("Loads that failed", lambda: loader.stats.failures),
            "graft_adapter_evictions": ("Adapters dropped from the device", lambda: residency.evictions),
        }
