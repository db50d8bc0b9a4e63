"""Steps, from a plan to what everybody gets of it: asking, beginning, handing out.

Where the runner takes a step before the one under way has ended, and nothing but that one's tokens could change what comes
next, the following step is begun first: a device is never left waiting for Python. Its rows of those who turn out to have
ended are computed for nobody. A failing step costs its own requests an error, and nobody else anything.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from graft.hub.errors import GraftError
from graft.server.cache.step import Run, make_batch
from graft.server.engine.consumers import Asked, Consumer
from graft.server.engine.ledger import Ledger
from graft.server.engine.messages import Inbox, Masked
from graft.server.engine.scheduler import PlanError, Scheduler
from graft.server.engine.sequence import Chunk, StepPlan
from graft.server.operations.step_pace import StepPace
from graft.server.runners.protocol import Runner
from graft.server.sampling.params import Draw, HiddenSum, Score, StepResult, Token
from graft.server.structured.mask_thread import MaskThread
from graft.server.structured.matcher import Matcher

MASKS_S = 0.005  # so long do a step's other rows wait for masks that are not there when its logits are


@dataclass(frozen=True)
class StepAsked:
    """What a step is asked: for whom, and of which of the rows that want logits. `matchers`: those whose masks draws need."""

    whose: Sequence[tuple[Consumer, Asked]]
    draws: Sequence[tuple[int, Draw]]
    scores: Sequence[tuple[int, Score]]

    @property
    def matchers(self) -> list[Matcher]:
        return [one.matcher for one, ask in self.whose if ask.draw and one.matcher]

    def answers(self, result: StepResult) -> Iterator[tuple[Consumer, "Answer"]]:
        """Everybody's own part."""
        tokens, scores, sums = iter(result.tokens), iter(result.scores), iter(result.hidden)
        for consumer, ask in self.whose:
            yield (
                consumer,
                Answer(
                    ask,
                    next(tokens) if ask.draw else None,
                    [next(scores) for _ in ask.scores],
                    next(sums) if ask.hidden else None,
                ),
            )


@dataclass(frozen=True, slots=True)
class Answer:
    """What a step answers one consumer: the token drawn, the scores, the sum of hidden states. None for what is not finite."""

    asked: Asked
    token: Token | None
    scores: Sequence[tuple[Token, ...] | None]
    hidden: HiddenSum | None

    @property
    def finite(self) -> bool:
        drawn = not self.asked.draw or self.token is not None
        return drawn and None not in self.scores and (not self.asked.hidden or self.hidden is not None)


def ask_all(consumers: Sequence[Consumer], chunks: Sequence[Chunk], runs: Sequence[Run]) -> StepAsked:
    """Ask each about its chunk, which is the batch's run at the same place."""
    asked = [consumer.ask(chunk) for consumer, chunk in zip(consumers, chunks, strict=True)]
    firsts = [0, *accumulate(run.logits for run in runs)]  # of each chunk's rows that want logits
    draws = [(last - 1, ask.draw) for last, ask in zip(firsts[1:], asked, strict=True) if ask.draw]
    scores = [(first + row, score) for first, ask in zip(firsts, asked, strict=False) for row, score in ask.scores]
    return StepAsked([*zip(consumers, asked, strict=True)], draws, scores)


@dataclass(frozen=True)
class StepUnderWay:
    """Begun, and its tokens not known. `result` waits for them."""

    plan: StepPlan
    asked: StepAsked
    result: Callable[[], StepResult]
    began: float


class Stepper:
    """Carries steps out, on the engine's thread."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        pace: StepPace,
        ledger: Ledger,
        masks: MaskThread,
        inbox: Inbox,
        carry: Callable[[], None],
    ):
        """`carry`: called when all has been handed out that a step brings."""
        self.count = 0  # of steps begun
        self._ended = 0.0  # when the last one did
        self._runner, self._scheduler, self._pace, self._ledger = runner, scheduler, pace, ledger
        self._masks, self._inbox, self._carry = masks, inbox, carry

    def run(self, plan: StepPlan, undisturbed: Callable[[], bool]) -> None:
        """Carry out a step, and those that follow from it for as long as there is nothing else to do."""
        step = self._begin(plan)
        while step is not None:
            following = self._follow(step) if self._runner.begins_early and undisturbed() else None
            self._end(step, following)
            step = following

    def _begin(self, plan: StepPlan) -> StepUnderWay | None:
        self.count += 1
        began, chunks = time.perf_counter(), plan.chunks
        try:
            batch, order = make_batch([(chunk.sequence.owner, chunk.run()) for chunk in chunks], plan.copies)
            consumers = [self._ledger.scheduled[chunks[i].sequence] for i in order]
            asked = ask_all(consumers, [chunks[i] for i in order], batch.runs)
            matchers = asked.matchers
            self._masks.begin(matchers)
            ready = partial(self._masks.wait, matchers, MASKS_S)
            return StepUnderWay(plan, asked, self._runner.begin(batch, asked.draws, asked.scores, ready), began)
        except Exception as error:
            self._fail(plan, error)
            return None

    def _follow(self, step: StepUnderWay) -> StepUnderWay | None:
        """Begin what comes next while a step is under way, where that is known already."""
        drawing = [consumer for consumer, ask in step.asked.whose if ask.draw]
        going = [(place, consumer) for place, consumer in enumerate(drawing) if consumer in self._ledger]
        if not all(consumer.foreseeable for _, consumer in going):
            return None
        try:
            plan = self._scheduler.follow({consumer.sequence: place for place, consumer in going})
        except PlanError as failure:
            self._fail(step.plan, failure.__cause__)
            return None
        return None if plan is None else self._begin(plan)

    def _end(self, step: StepUnderWay, following: StepUnderWay | None) -> None:
        try:
            result, since = step.result(), max(step.began, self._ended)
            self._ended = time.perf_counter()
            self._pace.took(step.plan.rows, self._ended - since, prompts=step.plan.has_prompts)
            self._deliver(step.asked, result)
        except Exception as error:
            self._fail(step.plan, error)
            if following is not None:  # its plan made the blocks findable that this step was to fill
                self._scheduler.withdraw(following.plan)
        self._carry()

    def _fail(self, plan: StepPlan, error: BaseException | None) -> None:
        self._scheduler.withdraw(plan)
        failure = error if isinstance(error, GraftError) else self._ledger.unexpected("A step failed", error)
        for chunk in plan.chunks:
            if chunk.sequence in self._ledger.scheduled:
                self._ledger.fail(self._ledger.scheduled[chunk.sequence], failure)

    def _deliver(self, asked: StepAsked, result: StepResult) -> None:
        """Hand out what has come of a step, and see who is done."""
        for consumer, answer in asked.answers(result):
            if consumer not in self._ledger:  # it ended when the step had been begun
                continue
            matcher = consumer.matcher if answer.asked.draw else None
            if matcher is not None and matcher.error is not None:
                self._ledger.fail(consumer, matcher.error)
                continue
            if matcher is not None and matcher.late:
                self._scheduler.miss(consumer.sequence)
                self._masks.when_ready(matcher, partial(self._inbox.post, Masked(consumer)))
                continue
            if not answer.finite:
                self._scheduler.distrust(consumer.sequence)
                self._ledger.fail(consumer, consumer.no_token())
                continue
            try:
                for tokens_of_row in filter(None, answer.scores):
                    consumer.observe(tokens_of_row)
                if answer.hidden is not None:
                    consumer.pool(answer.hidden)
                done = consumer.sequence.remaining <= 0 if answer.token is None else consumer.accept(answer.token)
            except Exception as error:
                self._ledger.fail(consumer, self._ledger.unexpected("Taking a step's result failed", error))
                continue
            if done:
                self._ledger.finish(consumer)
        # At once: until the next step a core is free, whose threads would wait for whom this thread holds up.
        self._masks.begin(
            [consumer.matcher for consumer, _ in asked.whose if consumer.matcher and consumer in self._ledger]
        )
