"""Draws tokens and reports log-probabilities with torch's operators: any device, all rows of a step at once.

In float32 whatever the logits' dtype. A row's token depends on that row and its own `Draw` alone. `draw_tokens` waits for
nothing on the device, so that a GPU's step can be recorded with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graft.server.sampling.params import Draw, Score, StepResult, Token, uniform

_ROWS_AT_ONCE = 128  # of log-probabilities: bounds the float32 copy of their logits


@dataclass(frozen=True)
class Rules:
    """The parameters of n draws, [n] each, on the logits' device."""

    temperature: Tensor  # 1 for greedy rows
    uniform: Tensor  # float64
    greedy: Tensor  # bool
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor  # float64


def sample(logits: Tensor, draws: Sequence[tuple[int, Draw]], scores: Sequence[tuple[int, Score]]) -> StepResult:
    """`draws` and `scores`: (row of logits [N, V], what is asked of it)."""
    tokens: list[Token | None] = []
    if draws:
        ids, finite = (x.tolist() for x in _drawn(logits, draws))
        tokens = [Token(id) if ok else None for id, ok in zip(ids, finite, strict=True)]
    reported = [i for i, (_, draw) in enumerate(draws) if tokens[i] and draw.sampling.logprobs is not None]
    asked = [
        *scores,
        *((draws[i][0], Score((ids[i],), draws[i][1].sampling.logprobs or 0)) for i in reported),
    ]
    answers = score(logits, asked)
    for i, answer in zip(reported, answers[len(scores) :], strict=True):
        tokens[i] = answer[0] if answer else None
    return StepResult(tokens, answers[: len(scores)])


def _drawn(logits: Tensor, draws: Sequence[tuple[int, Draw]]) -> tuple[Tensor, Tensor]:
    rows = [row for row, _ in draws]
    wanted = logits if rows == list(range(len(logits))) else logits[_tensor(rows, logits.device)]
    wanted = edited(wanted, [draw for _, draw in draws])
    plain = all(draw.sampling.greedy for _, draw in draws)
    filtered = any(_is_filtered(draw) for _, draw in draws)
    return draw_tokens(wanted, None if plain else rules_of([draw for _, draw in draws], logits.device), filtered)


def _is_filtered(draw: Draw) -> bool:
    rules = draw.sampling
    return not rules.greedy and (rules.top_k > 0 or rules.top_p < 1 or rules.min_p > 0)


def rules_of(draws: Sequence[Draw], device: torch.device) -> Rules:
    everything = 1 << 62
    columns = np.array(
        [
            (
                1.0 if draw.sampling.greedy else draw.sampling.temperature,
                0.0 if draw.sampling.greedy else uniform(draw.seed, draw.position),
                draw.sampling.greedy,
                draw.sampling.min_p,
                draw.sampling.top_k or everything,
                draw.sampling.top_p,
            )
            for draw in draws
        ],
        np.float64,
    ).T
    values = torch.from_numpy(np.ascontiguousarray(columns)).to(device)
    temperature, chance, greedy, min_p, top_k, top_p = values
    return Rules(temperature.float(), chance, greedy > 0, min_p.float(), top_k, top_p)


def edited(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits [n, V] with each draw's edits and what is not allowed at -inf; float32 where there are any."""
    changes = [(row, draw.edits) for row, draw in enumerate(draws) if draw.edits is not None]
    masked = [(row, draw.allowed) for row, draw in enumerate(draws) if draw.allowed is not None]
    if not changes and not masked:
        return logits
    logits, device = logits.float().clone(), logits.device
    if changes:
        edits = np.concatenate([edit for _, edit in changes])
        rows = _tensor(np.repeat([row for row, _ in changes], [len(edit) for _, edit in changes]), device)
        ids = _tensor(edits["id"].astype(np.int64), device)
        before, penalty, after = (_tensor(edits[name].copy(), device) for name in ("before", "penalty", "after"))
        value = logits[rows, ids] + before
        logits[rows, ids] = torch.where(value > 0, value / penalty, value * penalty) + after
    if masked:
        bits = np.unpackbits(np.stack([mask for _, mask in masked]).view(np.uint8), axis=1, bitorder="little")
        absent = _tensor(bits[:, : logits.shape[1]] == 0, device)
        rows = _tensor([row for row, _ in masked], device)
        logits[rows] = logits[rows].masked_fill(absent, float("-inf"))
    return logits


def draw_tokens(logits: Tensor, rules: Rules | None, filtered: bool) -> tuple[Tensor, Tensor]:
    """A token a row of logits [n, V] and whether the row is finite: [n], [n]. `rules`: None where all rows are greedy.

    `filtered`: whether any row has a top-k, top-p or min-p. The token is where the cumulated probability, in the order of
    the ids, passes the row's random number.
    """
    best = logits.argmax(dim=-1)  # a NaN's place, where there is one
    peak = logits.gather(1, best[:, None])
    finite = peak[:, 0].isfinite()
    if rules is None:
        return best, finite
    x = (logits.float() - peak.float()) / rules.temperature[:, None]
    mass = x.exp()
    if filtered:
        mass = torch.where(_kept(x, mass, rules), mass, 0.0)
    cumulated = mass.cumsum(dim=-1, dtype=torch.float64)
    target = rules.uniform[:, None] * cumulated[:, -1:]
    drawn = (cumulated <= target).sum(dim=-1).clamp(max=logits.shape[1] - 1)
    return torch.where(rules.greedy, best, drawn), finite


def _kept(x: Tensor, mass: Tensor, rules: Rules) -> Tensor:
    """What min-p, then top-k, then top-p leave of rows [n, V]. mass: e^x, 1 for the most probable token."""
    order = x.argsort(dim=-1, descending=True, stable=True)
    mass = mass.gather(1, order)
    kept = (mass >= rules.min_p[:, None]) & (torch.arange(x.shape[1], device=x.device) < rules.top_k[:, None])
    mass = torch.where(kept, mass, 0.0).double()
    cumulated = mass.cumsum(dim=-1)
    kept &= cumulated - mass < rules.top_p[:, None] * cumulated[:, -1:]
    kept[:, 0] = True  # top_p = 0 leaves the most probable token
    return torch.zeros_like(kept).scatter_(1, order, kept)


def score(logits: Tensor, asked: Sequence[tuple[int, Score]]) -> list[tuple[Token, ...] | None]:
    """Of each (row of logits [N, V], Score): the ids' log-probabilities, each with the row's most probable tokens."""
    answers: list[tuple[Token, ...] | None] = []
    for start in range(0, len(asked), _ROWS_AT_ONCE):
        answers += _score(logits, asked[start : start + _ROWS_AT_ONCE])
    return answers


def _score(logits: Tensor, asked: Sequence[tuple[int, Score]]) -> list[tuple[Token, ...] | None]:
    rows = logits[_tensor([row for row, _ in asked], logits.device)].float()
    total = rows.logsumexp(dim=-1)
    owner = [i for i, (_, score) in enumerate(asked) for _ in score.ids]
    ids = [id for _, score in asked for id in score.ids]
    where = _tensor(owner, logits.device)
    chosen = iter((rows[where, _tensor(ids, logits.device)] - total[where]).tolist())
    most = min(max(score.top for _, score in asked), logits.shape[1])
    values, names = (x.tolist() for x in (rows - total[:, None]).topk(most))
    answers: list[tuple[Token, ...] | None] = []
    for i, ((_, score), ok) in enumerate(zip(asked, total.isfinite().tolist(), strict=True)):
        top = tuple(zip(names[i][: score.top], values[i][: score.top], strict=True))
        tokens = tuple(Token(id, next(chosen), top) for id in score.ids)
        answers.append(tokens if ok else None)
    return answers


def _tensor(values: object, device: torch.device) -> Tensor:
    return torch.as_tensor(values, device=device)
