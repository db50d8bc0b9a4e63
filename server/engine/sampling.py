"""From logits to tokens: greedy or drawn, temperature, top-k, top-p, a seed a request, log-probabilities.

Computes in float32 whatever the base's dtype. A row's token depends on that row and its own request alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-4  # temperatures below are greedy: dividing logits by them could overflow
_ROWS_AT_ONCE = 128  # of prompt log-probabilities: bounds the float32 copy of their logits


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are drawn. `logprobs`: how many alternatives to report, None for no report at all."""

    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int | None = None
    logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < COLDEST or self.top_k == 1


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `logprob` is the model's own, before temperature; `top` the most probable alternatives."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Draw:
    """One row to draw from: whose rules, whose generator, and which tokens are out of the question."""

    sampling: Sampling
    generator: torch.Generator | None = None
    banned: Sequence[int] = ()


def generator_for(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    """A request's own source of randomness; None where there is nothing to draw."""
    if sampling.greedy:
        return None
    generator = torch.Generator(device)
    generator.manual_seed(sampling.seed) if sampling.seed is not None else generator.seed()
    return generator


def sample(logits: Tensor, draws: Sequence[Draw], argmax: Callable[[Tensor], Tensor]) -> list[Token | None]:
    """One token a row of logits [n, V]; None for a row that is not finite.

    `argmax` finds a row's largest value, or a NaN where there is one.
    """
    if any(draw.banned for draw in draws):
        logits = logits.clone()
        for row, draw in enumerate(draws):
            logits[row, list(draw.banned)] = float("-inf")
    greedy = argmax(logits)
    finite = logits.gather(1, greedy[:, None])[:, 0].isfinite().tolist()
    ids = greedy.tolist()
    for row, draw in enumerate(draws):
        if finite[row] and not draw.sampling.greedy:
            ids[row] = _draw(logits[row].float(), draw)
    reported = [row for row, draw in enumerate(draws) if finite[row] and draw.sampling.logprobs is not None]
    tokens: list[Token | None] = [Token(id) if ok else None for id, ok in zip(ids, finite, strict=True)]
    if reported:
        counts = [draws[row].sampling.logprobs or 0 for row in reported]
        for row, token in zip(reported, score(logits[reported], [ids[r] for r in reported], counts), strict=True):
            tokens[row] = token
    return tokens


def score(logits: Tensor, ids: Sequence[int], counts: Sequence[int]) -> list[Token]:
    """The given ids with their log-probabilities, and the counts[i] most probable ids, by rows of logits [n, V]."""
    tokens = []
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        rows = logits[part].float()
        total = rows.logsumexp(dim=-1)
        chosen = rows.gather(1, torch.tensor(ids[part], device=rows.device)[:, None])[:, 0] - total
        most = max(counts[part])
        values, indices = (rows - total[:, None]).topk(most) if most else (rows[:, :0], rows[:, :0].long())
        for id, logprob, count, top, names in zip(
            ids[part], chosen.tolist(), counts[part], values.tolist(), indices.tolist(), strict=True
        ):
            tokens.append(Token(id, logprob, tuple(zip(names[:count], top[:count], strict=True))))
    return tokens


def _draw(row: Tensor, draw: Draw) -> int:
    """row [V] in float32 -> a token by the request's rules."""
    sampling = draw.sampling
    row = row / sampling.temperature
    if sampling.top_k:
        least = row.topk(min(sampling.top_k, len(row))).values[-1]
        row = row.masked_fill(row < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = row.softmax(-1).sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # what comes after enough mass is reached
        beyond[0] = False  # top_p = 0 leaves the most probable token
        row = row.index_fill(0, order[beyond], float("-inf"))
    return int(torch.multinomial(row.softmax(-1), 1, generator=draw.generator))
