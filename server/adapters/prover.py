"""Proofs of adapters that come in: their probes run again in float32 over the base's stored weights, a turn at a time.

Adapters that wait together share one pass over the layers; what the bare base answers is computed once per content of
the base. What is proven stays proven on this machine (hub/machine/kept_values.py). Knows no requests: the engine gives it the time
between its steps.
"""

import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TypedDict

import torch

from graft.hub.adapters.artifact import Artifact
from graft.hub.adapters.probe import (
    OldProbe,
    Probe,
    ProbeQuestion,
    ProofOutcome,
    Table,
    Verdict,
    judge,
    judge_old,
    read_probe,
)
from graft.hub.adapters.probe_replay import Replayed, answers, replay_of
from graft.hub.base.model import Base
from graft.hub.base.stored_weights import PIECE_S, Arithmetic, StoredWeights, stored_base, stored_weights
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.machine.compute_threads import compute_alone
from graft.hub.machine.kept_values import keep, recall
from graft.server.adapters.time_slices import TimeSlices
from graft.server.errors import BrokenError
from graft.server.leaving import LEAVE_S
from graft.server.used_last import UsedLast

log = logging.getLogger(__name__)
_TOGETHER = 4  # adapters of a pass: beyond, what cannot be cut (the attention of all) grows longer than a turn
_ROWS = 320  # that they ask about, each a row of logits: a stranger's probe may ask about many
_TURN_S = 0.01  # of a turn at most: what a request may have to wait for
_SHARE = 1 / 16  # of the steps' time, while there are steps
MOST_SAID = 32  # probes whose answers by the bare base are at hand: a stranger's may take a megabyte each
_PROOFS, _BASES = "proofs", "proof-bases"  # kinds of what is kept

Questions = tuple[ProbeQuestion, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """What an adapter says of itself, and what is known of it. `adapter`: in float32 on the stored base, as long as it is
    needed."""

    digest: str
    probe: Probe | OldProbe | None = None
    adapter: Replayed | None = None
    verdict: Verdict | None = None  # None: still to be proven

    @property
    def bytes(self) -> int:
        return 0 if self.adapter is None else self.adapter.bytes

    @property
    def question(self) -> "tuple[Replayed, Questions]":
        """What there is to prove, as long as the case is open."""
        assert self.adapter is not None and self.probe is not None
        return self.adapter, self.probe.questions

    def with_verdict(self, verdict: Verdict) -> "Case":
        return replace(self, adapter=None, verdict=verdict)


Closing = Callable[[Verdict | GraftError], None]  # gets a case's verdict, or why there is none
OpenCase = tuple[Case, Closing]


class _KeptVerdict(TypedDict):
    """A `Verdict` as it lies on this machine."""

    outcome: str
    why: str
    gap: float | None
    noises: float | None


class Prover:
    """`case` is for loaders' threads; the rest is for the engine's, which lends the time."""

    def __init__(self, base: Base):
        self._base = base
        self._turns = _turns()
        self._lock = threading.Lock()
        self._opened: tuple[StoredWeights, Base] | None = None
        self._waiting: deque[OpenCase] = deque()
        self._under_way: list[OpenCase] = []
        self._said: UsedLast[Questions, list[Table]] = UsedLast(MOST_SAID)  # by the bare base
        self._finished: deque[tuple[OpenCase, Verdict | GraftError]] = deque()
        self._owed = 0.0  # seconds

    # For loaders

    @property
    def base_content(self) -> str:
        """Hash of all that the base's files hold: read once a state of the files, for any thread."""
        return self._open()[0].content

    def case(self, artifact: Artifact) -> Case:
        """What there is to prove of an adapter.

        Raises ArtifactError for a malformed probe, and where this base's tokenizer is not that of the training.
        """
        if artifact.probe is None:
            return Case(artifact.digest).with_verdict(Verdict(ProofOutcome.UNPROVEN, "it brings no probe"))
        recorded = artifact.provenance.get("base")
        fingerprint = recorded.get("fingerprint") if isinstance(recorded, dict) else None
        if fingerprint not in (None, self._base.spec.fingerprint):
            why = "this is not the base of its training (--allow-base-mismatch)"
            return Case(artifact.digest).with_verdict(Verdict(ProofOutcome.UNPROVEN, why))
        probe = read_probe(artifact.probe, self._base.spec.vocab_size)
        _require_same_ids(probe, self._base.tokenizer)
        weights, stored = self._open()
        known = recall(_PROOFS, _key(artifact.digest, probe, weights.content))
        if known is not None:
            return Case(artifact.digest, probe).with_verdict(_read(known))
        return Case(artifact.digest, probe, replay_of(artifact.fold(stored)))

    # For the engine's thread

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return self._turns.busy or bool(self._waiting or self._finished)

    def prove(self, case: Case, done: Closing) -> None:
        """Call `done` within a later `turn` or `abandon`. Where it raises, it is called again, with that error."""
        self._waiting.append((case, done))

    def beside(self, step_s: float) -> None:
        """A step took so long: go on for a small share of that, once it has added up to something."""
        self._owed = min(_TURN_S, self._owed + step_s * _SHARE)
        if self._owed >= PIECE_S:
            self.turn(self._owed)
            self._owed = 0.0

    def turn(self, seconds: float = _TURN_S) -> None:
        """Go on for about so long. Raises RuntimeError where a thread is needed and the system allows none."""
        if self._waiting and not self._turns.busy:
            if not self._turns.alive:
                self._turns = _turns()
            self._under_way = self._next_cases()
            self._turns.start(partial(self._pass, self._under_way))
        self._turns.go(seconds)
        while self._finished:
            self._close_case(*self._finished.popleft())
        if not self._turns.alive:
            self.abandon(BrokenError("The thread of the proofs has ended."))

    def abandon(self, error: GraftError) -> None:
        """Nobody computes what is open: every case is closed with an error. The next ones begin afresh, on a thread that is
        started for them: who is told now needs none."""
        left = [*(one for one, _ in self._finished), *self._under_way, *self._waiting]
        self._finished.clear()
        self._under_way = []
        self._waiting.clear()
        self._turns.close()
        for one in left:
            self._close_case(one, error)

    def close(self, wait_s: float = LEAVE_S) -> None:
        self._turns.close(wait_s)

    def _close_case(self, one: OpenCase, answer: Verdict | GraftError) -> None:
        self._under_way = [other for other in self._under_way if other is not one]
        try:
            one[1](answer)
        except Exception as error:
            log.exception("a proof could not be closed")
            one[1](BrokenError(f"The proof failed: {type(error).__name__}: {error}"))

    def _next_cases(self) -> list[OpenCase]:
        """The next ones, in order."""
        taken: list[OpenCase] = []
        rows = 0
        while self._waiting and len(taken) < _TOGETHER and rows < _ROWS:
            taken.append(self._waiting.popleft())
            probe = taken[-1][0].probe
            rows += sum(len(asked.tokens) for asked in probe.questions) if probe else 0
        return taken

    # On the turns' thread

    def _pause(self) -> None:
        self._turns.pause()  # of the present thread: what keeps this method outlives an abandoned one

    def _pass(self, together: list[OpenCase]) -> None:
        answers: Sequence[Verdict | GraftError]
        try:
            answers = self._verdicts([case for case, _ in together])
        except Exception as error:
            if len(together) > 1:  # one of them is to blame: each alone
                for one in together:
                    self._pass([one])
                return
            log.exception("a proof failed")
            answers = [BrokenError(f"The probe can't be run here ({type(error).__name__}: {error}).")]
        self._finished += zip(together, answers, strict=True)

    def _verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
        weights, stored = self._open()
        content = weights.content
        put = {case.probe.questions for case in cases if isinstance(case.probe, Probe)}
        unknown = [questions for questions in put if not self._knows_base(questions, content)]
        asked = [(replay_of(()), questions) for questions in unknown]
        asked += [case.question for case in cases]
        told = answers(stored, asked, self._pause)
        for questions, tables in zip(unknown, told, strict=False):
            self._said[questions] = tables
            keep(_BASES, _base_key(questions, content), tables)
        return [self._judge(case, own, content) for case, own in zip(cases, told[len(unknown) :], strict=True)]

    def _judge(self, case: Case, told: list[Table], content: str) -> Verdict:
        self._pause()
        probe = case.probe
        assert probe is not None
        if isinstance(probe, OldProbe):
            verdict = judge_old(probe, told)
        else:
            verdict = judge(probe, self._said[probe.questions], told, content)
        if verdict.outcome is not ProofOutcome.REFUSED:
            keep(_PROOFS, _key(case.digest, probe, content), asdict(verdict) | {"outcome": verdict.outcome.value})
        return verdict

    def _knows_base(self, questions: Questions, content: str) -> bool:
        """Whether the bare base's answers are at hand, or known from an earlier run."""
        if questions in self._said:
            self._said.move_to_end(questions)  # this pass needs them: what it adds takes the place of others
            return True
        known = recall(_BASES, _base_key(questions, content))
        if known is None:
            return False
        self._said[questions] = [tuple(tuple(row) for row in table) for table in known]
        return True

    def _open(self) -> tuple[StoredWeights, Base]:
        with self._lock:
            if self._opened is None:
                weights = stored_weights(self._base)
                self._opened = weights, stored_base(self._base, weights, Arithmetic(pause=self._pause))
            return self._opened


def _turns() -> TimeSlices:
    return TimeSlices("graft-prover", compute_alone)


def _require_same_ids(probe: Probe | OldProbe, tokenizer: Callable[[str], Mapping[str, Sequence[int]]] | None) -> None:
    if tokenizer is None or isinstance(probe, OldProbe):
        return
    for one in probe.texts:
        ids = tokenizer(one.text)["input_ids"][: len(one.asked.ids)]
        if tuple(ids) != one.asked.ids:
            raise ArtifactError(
                f"This base's tokenizer makes other ids of the probe's text {one.text[:40]!r} than it did when the "
                "adapter was trained: its prompts would be read otherwise. Serve it on the base of its training."
            )


def _machine() -> list[str]:
    """What a proof holds for, beside adapter and base."""
    return [version("grafthub"), torch.__version__, version("transformers"), torch.backends.cpu.get_cpu_capability()]


def _key(digest: str, probe: Probe | OldProbe, content: str) -> str:
    return json.dumps([digest, asdict(probe), content, *_machine()])


def _base_key(questions: Questions, content: str) -> str:
    return json.dumps([[asdict(one) for one in questions], content, *_machine()])


def _read(kept: _KeptVerdict) -> Verdict:
    return Verdict(ProofOutcome(kept["outcome"]), kept["why"], kept["gap"], kept["noises"])
