"""Who is owed an end, and what each holds until then: a place in the scheduler, an adapter in host memory.

Used by the engine's thread alone. Ending a consumer first takes back what it holds, then tells it. What fails in telling
costs that consumer an error; what fails in taking back leaves nobody able to say what is free, and ends the engine.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from graft.hub.errors import GraftError
from graft.server.adapters.device import DeviceTier
from graft.server.adapters.host import HostTier
from graft.server.engine.consumers import Consumer, RunningRequest
from graft.server.engine.scheduler import Scheduler
from graft.server.engine.sequence import SequenceState
from graft.server.errors import BrokenError, StateLostError

log = logging.getLogger(__name__)


class Ledger:
    """Consumers from the moment that they are known to the moment that they have been told their end."""

    def __init__(self, scheduler: Scheduler, host: HostTier, device: DeviceTier):
        self.scheduled: dict[SequenceState, Consumer] = {}
        self._scheduler = scheduler
        self._host, self._device = host, device
        self._open: set[Consumer] = set()
        self.suspicious = False  # something failed that should not have, and the books have not been compared since

    def __contains__(self, consumer: Consumer) -> bool:
        return consumer in self._open

    def open(self, consumer: Consumer) -> None:
        """From now on it will be told an end, whatever happens."""
        self._open.add(consumer)

    def start(self, consumer: Consumer) -> None:
        """Schedule its sequence. What it raises leaves everything as it was."""
        self._scheduler.add(consumer.sequence)
        self.scheduled[consumer.sequence] = consumer
        self._open.add(consumer)

    def detach(self, sequence: SequenceState) -> list[int]:
        """A scheduled sequence's blocks, which are the caller's from now on; it is forgotten."""
        blocks = self._scheduler.detach(sequence)
        del self.scheduled[sequence]
        return blocks

    def finish(self, consumer: Consumer) -> None:
        """All is computed."""
        if consumer not in self._open:
            return
        try:
            if not consumer.keeps_blocks:
                self._release(consumer)
            consumer.finish()
            self._close(consumer)
        except Exception as error:
            self.fail(consumer, self.unexpected("Ending a request failed", error))

    def cancel(self, request: RunningRequest) -> None:
        """Nobody waits for it any more."""
        if request in self._open:
            self._release(request)
            request.cancel()
            self._close(request)

    def fail(self, consumer: Consumer, error: GraftError) -> None:
        """End it by an error, if it has not ended. Where telling it fails it is told that: what waits for an errand of the engine's
        own would wait for ever."""
        if consumer in self._open:
            self._release(consumer)
            try:
                consumer.fail(error)
            except Exception as failure:
                consumer.fail(self.unexpected("Telling a request why it failed failed", failure))
            self._close(consumer)

    def adapters(self) -> tuple[set[str], set[str]]:
        """Names of the adapters whose requests have begun, and of those whose requests wait. On any thread."""
        begun: tuple[set[str], set[str]] = set(), set()
        for one in list(self._open):
            if isinstance(one, RunningRequest) and (name := one.stream.request.model) is not None:
                begun[0 if one.begun else 1].add(one.served.name or name)
        return begun

    def owned_by(self, digest: str) -> list[Consumer]:
        """Everybody who has rows of an adapter."""
        return [consumer for consumer in self.scheduled.values() if consumer.sequence.owner == digest]

    def fail_all(self, error: GraftError) -> None:
        """The engine has ended: every request is told, whatever fails for another; nothing is taken back any more. A step that was
        left to itself finds nobody to be told more, should it come back yet."""
        for request in [consumer for consumer in self._open if isinstance(consumer, RunningRequest)]:
            try:
                request.fail(error)
            except BaseException:
                log.exception("a request could not be failed")
                request.stream.put(error)
        self._open.clear()

    def unexpected(self, what: str, error: BaseException | None) -> BrokenError:
        """While a failure is handled that should not have been: keep it for the log, and have the books compared."""
        log.exception("%s", what)
        self.suspect()
        return BrokenError(f"{what}: {type(error).__name__}: {error}")

    def suspect(self) -> None:
        """Something failed that should not have: have the books compared."""
        self.suspicious = True

    def compare(self) -> None:
        """Between steps, after a failure: raises StateLostError where something is not accounted for."""
        if self.suspicious and (wrong := self.discrepancy()):
            raise StateLostError(wrong)
        self.suspicious = False

    def discrepancy(self) -> str | None:
        """What does not balance: every sequence is somebody's, every block and adapter held by as many as it counts."""
        states = dict(self._scheduler.sequences())
        if states.keys() != self.scheduled.keys():
            return f"{len(states)} sequences are scheduled for {len(self.scheduled)} consumers"
        waiting, running = (
            Counter(one.awaits for one, runs in states.items() if runs is running and one.awaits is not None)
            for running in (False, True)
        )
        holders = Counter(block for sequence in states for block in sequence.blocks)
        holders.update(block for resident in self._device.snapshot() for block in resident.virtual.blocks)
        return self._device.discrepancy(waiting, running) or self._scheduler.blocks.discrepancy(holders)

    def _close(self, consumer: Consumer) -> None:
        self._release(consumer)
        self._open.discard(consumer)

    def _release(self, consumer: Consumer) -> None:
        with _taking_back():
            if self.scheduled.pop(consumer.sequence, None) is not None:
                self._scheduler.remove(consumer.sequence)
            loaded, consumer.loaded = consumer.loaded, None
            if loaded is not None:
                self._host.release(loaded)


@contextmanager
def _taking_back() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise StateLostError("what a request holds could not be taken back") from error
