"""The engine: one thread that owns the base and turns requests into tokens, step by step.

Messages (requests, cancellations, loaded adapters) come in through an inbox; tokens leave through streams. Each step
is planned by the scheduler, carried out by the runner, and handed to whoever its rows belong to. A failing step costs
its own requests an error, and nobody else anything.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from torch import Tensor

from graft.hub.base.model import Base
from graft.hub.errors import GraftError
from graft.hub.machine.compute_threads import ComputeThreads
from graft.server.adapters.device import VIRTUAL_SHARE, DeviceTier
from graft.server.adapters.host import HostTier, LoadResult
from graft.server.adapters.loaded import Loaded
from graft.server.adapters.names import AdapterNames, Shelf
from graft.server.adapters.prover import MOST_SAID, Prover
from graft.server.adapters.resident import Resident
from graft.server.cache.blocks import BlockPool
from graft.server.cache.tensors import KVCache
from graft.server.carriers import Carriers
from graft.server.engine.adapter_proof import BaseSaid, Proof
from graft.server.engine.arrival import Arrival
from graft.server.engine.consumers import RowsJob, RunningRequest, ends_of
from graft.server.engine.gauges import EngineGauges
from graft.server.engine.ledger import Ledger
from graft.server.engine.messages import (
    Ask,
    Cancelled,
    DetoursPrepared,
    Inbox,
    Message,
    Opened,
    Refused,
    Value,
    Wake,
)
from graft.server.engine.options import Options, sizes
from graft.server.engine.request import Limits, Outlet, Request, Result, Sink, Stream, generate
from graft.server.engine.scheduler import PlanError, Scheduler
from graft.server.engine.sequence import StepPlan
from graft.server.engine.steps import Stepper
from graft.server.errors import BrokenError, ClosedError, EndedError, StateLostError
from graft.server.interest import Interest
from graft.server.leaving import LEAVE_S, LeavableThread
from graft.server.operations.step_pace import StepPace
from graft.server.runners.factory import make_runner
from graft.server.served_version import Served
from graft.server.structured.compiler import Compiler
from graft.server.structured.mask_thread import MaskThread
from graft.server.telemetry import Metrics
from graft.server.used_last import UsedLast

log = logging.getLogger(__name__)


class Engine:
    """Serves a base and any adapters of it. Start one a process; `close` it when done (or use it in a `with`).

    Steps wait for Python's interpreter while other threads, or its garbage collector, have it. A process that streams calls what
    `hub.machine.interpreter` has for that, as `graft serve` and `graft bench` do; an engine leaves the process alone.
    """

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
        self.blocks = BlockPool(self.sizes.blocks)
        cache = KVCache(base.spec, self.sizes.blocks, base.dtype, base.device)
        self.runner = make_runner(self.options.runner, base, cache)  # may refuse: no threads before it
        local = {name: Path(folder) for name, folder in (adapters or {}).items()}
        self.library = AdapterNames(base.spec.fingerprint, local, shelf)
        self.prover = Prover(base)
        self.loader = HostTier(
            base,
            self.library,
            self.prover,
            budget_bytes=self.sizes.host_bytes,
            device_size=lambda detours: self.runner.size(detours),
            allow_base_mismatch=self.options.allow_base_mismatch,
            on_load=self.metrics.loaded,
        )
        self.compiler = Compiler(base.tokenizer, base.spec.vocab_size, self.ends)
        self.masks = MaskThread()
        self.residency = DeviceTier(self.runner, self.blocks, self, budget_bytes=self.sizes.device_bytes)
        pace = StepPace(self.sizes.least_rows, self.sizes.step_rows)
        self.scheduler = Scheduler(
            self.blocks,
            pace=pace,
            max_running=self.options.max_running,
            prefix_sharing=self.options.prefix_sharing,
            adapters=self.residency,
        )
        self.limits = Limits(
            base.spec.vocab_size,
            self.sizes.max_model_len,
            (self.sizes.blocks - 1) - (self.sizes.blocks - 1) // VIRTUAL_SHARE - 1,
        )
        self.ledger = Ledger(self.scheduler, self.loader, self.residency)
        watched = (self.blocks, self.scheduler, self.ledger, self.loader, self.residency)
        self.gauges = EngineGauges(base.spec.id or "base", self.options.max_running, *watched)
        self.metrics.source(self.gauges.read)
        self._base_said: BaseSaid = UsedLast(MOST_SAID)  # on this runner
        self._inbox = Inbox()
        self._at_hand: Message | None = None  # taken out of the inbox, and not done
        self._closing = False
        self._leave_at = math.inf  # a time.monotonic(), once it closes
        self.failure: EndedError | None = None  # what ended the engine, beside `close`
        self.ended = threading.Event()  # everybody has been told
        self._carriers = Carriers()
        self._stepper = Stepper(
            self.runner, self.scheduler, pace, self.ledger, self.masks, self._inbox, self._carriers.call
        )
        self._thread = LeavableThread(self._live, "graft-engine")
        self._thread.start()

    # For callers, on any thread

    def submit(self, request: Request, sink: Sink | Outlet | None = None) -> Stream:
        """Queue a request. `sink`: where the events of several streams go (request.Stream).

        Raises RequestError where the request can't be served as it stands, ClosedError after `close`, EndedError after
        a failure that ended the engine.
        """
        self.limits.check(request)
        if self._closing:
            raise ClosedError("The server is shutting down.")
        interest = Interest()

        def cancel() -> None:
            self._inbox.post(Cancelled(running))
            interest.end()

        stream = Stream(request, cancel, sink or SimpleQueue())
        running = RunningRequest(stream, self.ends, self.metrics, self.base.spec.vocab_size)
        self._inbox.put(Opened(running))
        Arrival(running, interest, self.compiler, self.loader, self._inbox).begin()
        return stream

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Serve requests together and wait for all. Raises the first one's error, the others cancelled."""
        return generate(requests, self.submit)

    def ask(self, question: Ask[Value]) -> Value:
        """Have a question answered on the engine's thread, between steps, and wait for it.

        Raises the GraftError that the question raises, ClosedError after `close`, EndedError after a failure.
        """
        self._inbox.put(question)
        return question.answer.result()

    def after_steps(self, carry: Callable[[], None]) -> Callable[[], None]:
        """Have `carry` called whenever events have been put and no more are at hand: at each step's end, mostly. On the engine's
        thread, which it holds up. Returns what ends it. For outlets that carry the events of many streams at once."""
        return self._carriers.add(carry)

    @property
    def steps(self) -> int:
        """Begun so far."""
        return self._stepper.count

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closing and self.failure is None

    def take_memory(self, seconds: float) -> None:
        """Before requests come: have the cache's memory now, as far as there is time for that, instead of within their steps."""
        self.runner.cache.take_memory(seconds)

    @property
    def runner_kind(self) -> str:
        """Of the runner that carries out its steps."""
        return type(self.runner).__name__

    @property
    def turn_s(self) -> float:
        """Seconds that the engine's thread has been at its present turn, a step in most cases; 0 while there is nothing to do."""
        return 0.0 if self.ended.is_set() else self._inbox.away_s

    def close(self) -> None:
        """End: requests under way get ClosedError. Idempotent. Takes LEAVE_S at most: what does not come back from a step, or from
        what it computes for an adapter, is left to itself (`leaving.threads_left`)."""
        if not self._closing:
            self._leave_at = time.monotonic() + LEAVE_S
            self._closing = True
            self._inbox.post(Wake())
        self._thread.join(self._leave_s)
        if self._thread.is_alive() and not self.ended.is_set():
            log.error("the engine does not come back from its step, and is left to itself")
            self.end_all(ClosedError("The server is shutting down."))
        for part in (self.compiler, self.loader, self.prover, self.masks):
            part.close(self._leave_s)

    @property
    def _leave_s(self) -> float:
        """Seconds that are left of a `close`."""
        return max(0.0, self._leave_at - time.monotonic())

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the device tier asks (AdapterWork)

    def prepare(self, resident: Resident) -> None:
        def work() -> None:
            self._inbox.put(DetoursPrepared(resident, self.runner.prepare(resident.loaded.detours)))

        def failed(error: GraftError) -> None:
            self._inbox.post(DetoursPrepared(resident, error))

        self.loader.prepare(work, failed)

    def hold(self, loaded: Loaded) -> None:
        self.loader.hold(loaded)

    def release(self, loaded: Loaded) -> None:
        self.loader.release(loaded)

    def take_blocks(self, n: int, digest: str) -> list[int]:
        return self.scheduler.take(n, digest)

    def run_rows(self, resident: Resident, rows: Tensor, done: Callable[[list[int] | GraftError], None]) -> None:
        self.ledger.start(RowsJob(resident, rows, done, self.ledger.detach))

    def prove(self, resident: Resident, done: Callable[[GraftError | None], None]) -> None:
        loaded = resident.loaded

        def proven(wrong: GraftError | None) -> None:
            self.loader.settle(loaded)
            done(wrong)

        Proof(resident, self.ledger.start, self.prover, self._base_said, proven).begin()

    def ready(self, digest: str) -> None:
        self.scheduler.wake(digest)

    def tokens_left(self) -> Mapping[str, int]:
        return self.scheduler.tokens_left()

    def refused(self, digest: str, error: GraftError) -> None:
        try:
            if isinstance(error, BrokenError):
                self.ledger.suspect()
            self._inbox.put(Refused(self.ledger.owned_by(digest), error))
        except Exception as failure:
            raise StateLostError(
                f"who waits for adapter {digest[:12]} could not be told that it is refused"
            ) from failure
        self.loader.refuse(digest, error)

    # What messages do, on the engine's thread

    def place(self, request: RunningRequest, answer: LoadResult | None) -> None:
        """The adapter is in host memory (or there is none, or an error): schedule the request."""
        if isinstance(answer, GraftError):
            self.ledger.fail(request, answer)
            return
        loaded, served = answer or (None, Served())
        if request not in self.ledger:  # cancelled meanwhile
            if loaded:
                self.loader.release(loaded)
            return
        request.loaded = loaded
        new = self.limits.new_tokens(request.stream.request, loaded.virtual_rows if loaded else 0)
        if loaded:
            self.residency.check(loaded)
        if request.begin(served, new).remaining <= 0:
            self.ledger.finish(request)
            return
        if loaded:
            self.residency.expect(loaded)
        try:
            self.ledger.start(request)
        except Exception:
            if loaded:
                self.residency.count(loaded.digest)  # none: it is not expected any more
            raise

    # The engine's thread

    def _live(self) -> None:
        reason: GraftError = ClosedError("The server is shutting down.")
        try:
            with ComputeThreads() as threads:
                while not self._closing and self.failure is None:
                    if self.runner.meets_often:
                        threads.fit()
                    self._turn()
        except BaseException as error:
            what = type(error.__cause__ or error).__name__
            reason = EndedError(f"The engine has ended by a failure ({what}): restart the server. Its log says more.")
            log.critical("the engine ends", exc_info=True)
        finally:
            self.end_all(reason)

    def end_all(self, reason: GraftError) -> None:
        """Tell everybody who waits for something, and those to come: whatever fails for one, the next is told. Another thread
        does so where the engine's own hangs: nobody may wait for that one any more."""
        if isinstance(reason, EndedError):
            self.failure = reason
        for tell in (
            partial(self._inbox.end, self, reason, self._at_hand),
            partial(self.ledger.fail_all, reason),
            self._carriers.call,
        ):
            try:
                tell()
            except BaseException:
                log.exception("somebody could not be told that the engine has ended")
        self.ended.set()

    def _turn(self) -> None:
        """Read what has come in, and do what there is to do, or wait for it."""
        busy = self.scheduler.running or self.scheduler.waiting
        for message in self._inbox.take(wait=not busy and not self.prover.busy):
            self._handle(message)
        self.residency.attend()
        plan = self._plan()
        self._carriers.call()
        if plan.chunks:
            began = time.monotonic()
            self._stepper.run(plan, self._undisturbed)
            if self.prover.busy:
                self._lend_time(time.monotonic() - began)
        elif self.prover.busy:
            self._lend_time(None)
        elif busy:  # an adapter is on its way in
            for message in self._inbox.take(wait=True, timeout=0.05):
                self._handle(message)
        self._carriers.call()
        self.ledger.compare()

    def _undisturbed(self) -> bool:
        """Whether the engine's thread has nothing to do but steps."""
        return self._inbox.is_empty() and not (self.residency.sought or self.prover.busy or self.ledger.suspicious)

    def _handle(self, message: Message) -> None:
        """What a message raises costs who sent it."""
        self._at_hand = message
        try:
            message.handle(self)
        except GraftError as error:
            message.fail(self, error)
        except Exception as error:
            message.fail(self, self.ledger.unexpected("Handling a request failed", error))
        self._at_hand = None

    def _plan(self) -> StepPlan:
        """The next step. A failure costs the sequence that it was decided about; it ends the engine where there is none."""
        try:
            return self.scheduler.plan()
        except PlanError as failure:
            if failure.sequence is None:
                raise
            cause = failure.__cause__
            error = cause if isinstance(cause, GraftError) else self.ledger.unexpected("Planning a step failed", cause)
            self.ledger.fail(self.ledger.scheduled[failure.sequence], error)
            return StepPlan()

    def _lend_time(self, step_s: float | None) -> None:
        """Let proofs go on: after a step of so many seconds, or (None) for a whole turn. A failure costs those under way."""
        try:
            if step_s is None:
                self.prover.turn()
            else:
                self.prover.beside(step_s)
        except Exception as error:
            self.prover.abandon(self.ledger.unexpected("A proof failed", error))
