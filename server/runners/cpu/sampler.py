"""Draws tokens and reports log-probabilities with the C++ kernels, as sampling/torch_sampler.py does with torch."""

from collections.abc import Sequence
from types import ModuleType

from torch import Tensor

from graft.server.sampling.params import Draw, Score, StepResult, Token

_WORD = (1 << 64) - 1
_Answer = Sequence[tuple[int, float]]  # kernels' Answer: what was asked about, then the most probable tokens


def sample(
    kernels: ModuleType, logits: Tensor, draws: Sequence[tuple[int, Draw]], scores: Sequence[tuple[int, Score]]
) -> StepResult:
    """`draws` and `scores`: (row of logits [N, V], what is asked of it)."""
    vocabulary = logits.shape[1]
    run = getattr(kernels, f"sample_{str(logits.dtype).removeprefix('torch.')}")
    answers: Sequence[_Answer] = run(
        logits,
        [_draw(kernels, row, draw, vocabulary) for row, draw in draws],
        [kernels.Score(row, score.ids, min(score.top, vocabulary)) for row, score in scores],
    )
    return StepResult(
        [_drawn(answer, draw) for answer, (_, draw) in zip(answers, draws, strict=False)],
        [_scored(answer, len(score.ids)) for answer, (_, score) in zip(answers[len(draws) :], scores, strict=True)],
    )


def _draw(kernels: ModuleType, row: int, draw: Draw, vocabulary: int) -> object:
    rules = draw.sampling
    return kernels.Draw(
        row, rules.greedy, rules.temperature, rules.min_p, min(rules.top_k, vocabulary), rules.top_p,
        draw.seed & _WORD, draw.position, draw.edits, draw.allowed,
        -1 if rules.logprobs is None else min(rules.logprobs, vocabulary), vocabulary,
    )  # fmt: skip


def _drawn(answer: _Answer, draw: Draw) -> Token | None:
    if not answer:
        return None
    if draw.sampling.logprobs is None:
        return Token(answer[0][0])
    return Token(*answer[0], tuple(answer[1:]))


def _scored(answer: _Answer, count: int) -> tuple[Token, ...] | None:
    top = tuple(answer[count:])
    return tuple(Token(id, logprob, top) for id, logprob in answer[:count]) or None
