"""What must hold before an adapter's requests start: its proof, step by step, as the engine finds the time.

First on the path that serves it, in its own dtype, for what that can show; then in float32 over the stored base
(server/adapters/prover.py). Runs on the engine's thread.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from graft.hub.adapters.probe import Probe, ProbeQuestion, ProofOutcome, Table, Verdict, judge_serving
from graft.hub.errors import ArtifactError, GraftError
from graft.server.adapters.prover import Prover
from graft.server.adapters.resident import Resident
from graft.server.engine.consumers import Question
from graft.server.used_last import UsedLast

log = logging.getLogger(__name__)
Told = Sequence[Table] | GraftError
BaseSaid = UsedLast[tuple[ProbeQuestion, ...], Sequence[Table]]  # to probes' questions
Ask = Callable[[Question], None]  # puts a question to the path that serves


class Proof:
    """Of one resident. `base_said`: what the bare base answered on this path, filled here. `done`: what is wrong, or None."""

    def __init__(
        self,
        resident: Resident,
        ask: Ask,
        prover: Prover,
        base_said: BaseSaid,
        done: Callable[[GraftError | None], None],
    ):
        self._resident, self._ask, self._prover = resident, ask, prover
        self._base_said, self._done = base_said, done
        self._case = resident.loaded.case

    def begin(self) -> None:
        probe = self._case.probe
        if not isinstance(probe, Probe):
            self._replay()
        elif probe.questions in self._base_said:
            self._ask_adapter(probe, self._base_said[probe.questions])
        else:
            self._put(probe.questions, None, partial(self._ask_adapter, probe))

    def _ask_adapter(self, probe: Probe, told: Told) -> None:
        if isinstance(told, GraftError):
            self._done(told)
            return
        self._base_said[probe.questions] = told
        self._put(probe.questions, self._resident, partial(self._judge_adapter, probe, told))

    def _judge_adapter(self, probe: Probe, base: Sequence[Table], told: Told) -> None:
        if isinstance(told, GraftError):
            self._done(told)
            return
        verdict = judge_serving(probe, base, told)
        if verdict.outcome is ProofOutcome.REFUSED:
            self._close(verdict)
        else:
            self._replay()

    def _replay(self) -> None:
        if self._case.verdict is not None:
            self._close(self._case.verdict)
        else:
            self._prover.prove(self._case, self._close)

    def _close(self, verdict: Verdict | GraftError) -> None:
        if isinstance(verdict, GraftError):
            self._done(verdict)
            return
        if verdict.outcome is ProofOutcome.REFUSED and self._resident.loaded.cases:
            self._resident.loaded.case = self._case = self._resident.loaded.cases.pop()
            self.begin()
            return
        self._resident.loaded.case = self._case.with_verdict(verdict)
        if verdict.outcome is ProofOutcome.ROUNDED:
            log.warning("Adapter %s is served as a rounded copy: %s.", self._case.digest[:12], verdict.why)
        refused = verdict.outcome is ProofOutcome.REFUSED
        self._done(ArtifactError(_refusal(verdict)) if refused else None)

    def _put(self, questions: Sequence[ProbeQuestion], resident: Resident | None, done: Callable[[Told], None]) -> None:
        """Ask all of them; `done` gets the answers in order, or the first thing that went wrong."""
        told: dict[int, Table | GraftError] = {}

        def keep_answer(place: int, answer: Table | GraftError) -> None:
            told[place] = answer
            if len(told) == len(questions):
                answers = [told[i] for i in range(len(questions))]
                wrong = next((one for one in answers if isinstance(one, GraftError)), None)
                done(wrong or [one for one in answers if not isinstance(one, GraftError)])

        for place, asked in enumerate(questions):
            self._ask(Question(asked, resident, partial(keep_answer, place)))


def _refusal(verdict: Verdict) -> str:
    return (
        f"This adapter does not do here what it did when it was trained: {verdict.why}. "
        "Train or publish it again, or serve it on the base of its training."
    )
