"""Draws tokens and reports log-probabilities with torch's operators: any device, all rows of a step at once.

In float32 whatever the logits' dtype. A row's token depends on that row and its own `Draw` alone. The device is waited for once, for
the result. Draws whose logits nothing edits or masks are plain: of fixed shapes, so that they can be recorded with a step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graft.server.sampling.params import Draw, Score, StepResult, Token, uniform

_ROWS_AT_ONCE = 128  # of log-probabilities: bounds the float32 copy of their logits
_EVERYTHING = 1 << 62


@dataclass(frozen=True)
class Rules:
    """The parameters of n draws, [n] each, on the logits' device."""

    temperature: Tensor  # 1 for greedy rows
    uniform: Tensor  # float64
    greedy: Tensor  # bool
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor  # float64

    @classmethod
    def of(cls, columns: Tensor) -> "Rules":
        """From float64 [6, n], as `_rule` has a draw's."""
        temperature, chance, greedy, min_p, top_k, top_p = columns
        return cls(temperature.float(), chance, greedy > 0, min_p.float(), top_k, top_p)


class Way(Enum):
    """What drawing takes, by the draw that takes most."""

    GREEDY = 0
    DRAWN = 1
    FILTERED = 2  # by top-k, top-p or min-p


@dataclass(frozen=True)
class PlainDraws:
    """Draws of the first n rows of logits, in order, as they are. `columns`: float64 [6, n], a draw's rules each (`_rule`)."""

    way: Way
    columns: NDArray[np.float64]


class TorchSampler:
    """What one step is asked. Call it with the step's logits, when the draws' masks are there.

    `plain`: the draws, where they are; whoever draws them elsewhere gives `begin` the result. `draws` and `scores`: (row of
    the logits, what is asked of it).
    """

    def __init__(self, draws: Sequence[tuple[int, Draw]], scores: Sequence[tuple[int, Score]], device: torch.device):
        self._draws, self._scores, self._device = draws, scores, device
        self._asked = [draw for _, draw in draws]
        self._reported = [i for i, draw in enumerate(self._asked) if draw.sampling.logprobs is not None]
        self._tops = [score.top for _, score in scores] + [
            self._asked[i].sampling.logprobs or 0 for i in self._reported
        ]
        self.plain = plain_draws(draws)
        self._rows = None if self.plain else self._index([row for row, _ in draws])
        self._reported_draws = self._index(self._reported)
        rows = [row for row, _ in scores] + [draws[i][0] for i in self._reported]
        self._scored_rows = self._index(rows)
        self._owners = self._index([i for i, (_, score) in enumerate(scores) for _ in score.ids])
        self._ids = self._index([id for _, score in scores for id in score.ids])
        self.drawn = self._ids[:0]  # [draws] on the device, once the step has begun
        self._edits = self._edits_on_device()
        self._masks = [(row, draw.allowed) for row, draw in enumerate(self._asked) if draw.allowed is not None]
        self._way = _way_of(self._asked)
        self._columns = None if self.plain or self._way is Way.GREEDY else self._upload(_columns(self._asked))

    def __call__(self, logits: Tensor) -> StepResult:
        """logits [N, V], in any floating dtype."""
        return self.begin(logits)()

    def begin(self, logits: Tensor, drawn: tuple[Tensor, Tensor] | None = None) -> Callable[[], StepResult]:
        """As a call, without waiting for the device: what waits for the result. The attribute `drawn` has the tokens by then.

        `drawn`: ids [draws] and whether their rows are finite, where they have been drawn already.
        """
        results = []
        if self._draws:
            self.drawn, finite = drawn or self._draw(logits)
            results += [self.drawn, finite]
        scored = self._score(logits, self.drawn)
        values = torch.cat([part.double().flatten() for part in (*results, *scored)] or [logits.new_zeros(0)])
        read, vocabulary = _on_its_way(values), logits.shape[1]
        return lambda: self._result(read(), vocabulary)

    def _draw(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.plain is None:
            return draw_tokens(self._edited(logits[self._rows]), self._columns, self._way)
        columns = None if self._way is Way.GREEDY else self._upload(self.plain.columns)
        return draw_tokens(logits[: len(self._draws)], columns, self._way)

    def _score(self, logits: Tensor, drawn: Tensor) -> list[Tensor]:
        """Per asked id its log-probability; per row whether it is finite, its most probable tokens and theirs."""
        if not self._tops:
            return []
        most = min(max(self._tops), logits.shape[1])
        totals, values, names = [], [], []
        for rows in self._scored_rows.split(_ROWS_AT_ONCE):
            part = logits[rows].float()
            totals.append(part.logsumexp(dim=-1))
            names.append(_most_probable(part, most))
            values.append(part.gather(1, names[-1]) - totals[-1][:, None])
        total, count = torch.cat(totals), len(self._scores)
        own = torch.arange(count, len(self._tops), device=self._device)
        owners = torch.cat([self._owners, own])
        ids = torch.cat([self._ids, drawn[self._reported_draws]])
        chosen = logits[self._scored_rows[owners], ids].float() - total[owners]
        return [chosen, total.isfinite(), torch.cat(values), torch.cat(names)]

    def _result(self, values: list[float], vocabulary: int) -> StepResult:
        numbers = iter(values)

        def take(count: int) -> list[float]:
            return [next(numbers) for _ in range(count)]

        ids, finite = take(len(self._draws)), take(len(self._draws))
        tokens = [Token(int(id)) if ok else None for id, ok in zip(ids, finite, strict=True)]
        if not self._tops:
            return StepResult(tokens, [])
        most = min(max(self._tops), vocabulary)
        chosen = take(len(self._ids) + len(self._reported))
        sound = take(len(self._tops))
        values_of = [take(most) for _ in self._tops]
        names_of = [[int(name) for name in take(most)] for _ in self._tops]
        tops = [
            tuple(zip(names[:count], values[:count], strict=True))
            for names, values, count in zip(names_of, values_of, self._tops, strict=True)
        ]
        found = iter(chosen)
        scores = [
            made if ok else None
            for (_, score), top, ok in zip(self._scores, tops, sound, strict=False)
            for made in [tuple(Token(id, next(found), top) for id in score.ids)]
        ]
        for i, top, ok in zip(self._reported, tops[len(scores) :], sound[len(scores) :], strict=True):
            logprob, token = next(found), tokens[i]
            tokens[i] = Token(token.id, logprob, top) if ok and token else None
        return StepResult(tokens, scores)

    def _edited(self, logits: Tensor) -> Tensor:
        """Logits [n, V] of the draws with their edits, and what is not allowed at -inf; float32 where there are any."""
        if self._edits is None and not self._masks:
            return logits
        logits = logits.float()
        if self._edits is not None:
            rows, ids, before, penalty, after = self._edits
            value = logits[rows, ids] + before
            logits[rows, ids] = torch.where(value > 0, value / penalty, value * penalty) + after
        if self._masks:
            rows = self._index([row for row, _ in self._masks])
            absent = self._absent(-(-logits.shape[1] // 32))
            logits[rows] = logits[rows].masked_fill(absent[:, : logits.shape[1]], float("-inf"))
        return logits

    def _edits_on_device(self) -> tuple[Tensor, ...] | None:
        changes = [(row, draw.edits) for row, draw in enumerate(self._asked) if draw.edits is not None]
        if not changes:
            return None
        edits = np.concatenate([edit for _, edit in changes])
        rows = np.repeat([row for row, _ in changes], [len(edit) for _, edit in changes])
        fields = [np.ascontiguousarray(edits[name]) for name in ("before", "penalty", "after")]
        return tuple(self._upload(part) for part in (rows, edits["id"].astype(np.int64), *fields))

    def _absent(self, words: int) -> Tensor:
        """[n, V or a few more] of the n draws with a mask: bits travel, an eighth of what they stand for.

        `words`: of a mask, as far as there are logits.
        """
        packed = self._upload(np.stack([mask[:words] for _, mask in self._masks]).view(np.uint8))
        bits = (1 << torch.arange(8, device=self._device)).to(torch.uint8)
        return (packed[:, :, None] & bits == 0).flatten(1)

    def _index(self, numbers: Sequence[int]) -> Tensor:
        return self._upload(np.array(numbers, np.int64))

    def _upload(self, array: NDArray[np.generic]) -> Tensor:
        """On the device, as soon as it comes to it: nothing waits."""
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor


def sample(logits: Tensor, draws: Sequence[tuple[int, Draw]], scores: Sequence[tuple[int, Score]]) -> StepResult:
    """The same where the logits are there already."""
    return TorchSampler(draws, scores, logits.device)(logits)


def _on_its_way(values: Tensor) -> Callable[[], list[float]]:
    """What gives the numbers once they have come from the device. Other work given to the device meanwhile is not waited for."""
    if values.device.type != "cuda":
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(values.device))

    def read() -> list[float]:
        arrived.synchronize()
        numbers: list[float] = copy.tolist()
        return numbers

    return read


def _most_probable(rows: Tensor, most: int) -> Tensor:
    """Ids [n, most] of the largest values of float32 rows [n, V], of equals the lower id first, which topk doesn't promise."""
    bits = rows.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # as whole numbers in the order of the floats
    ids = torch.arange(rows.shape[1], device=rows.device)
    return (ordered << 32 | (rows.shape[1] - ids)).topk(most).indices


def plain_draws(draws: Sequence[tuple[int, Draw]]) -> PlainDraws | None:
    """None for draws of other rows than the first, in order, and for those that edit logits or mask them."""
    if not draws or any(
        row != i or draw.edits is not None or draw.allowed is not None for i, (row, draw) in enumerate(draws)
    ):
        return None
    asked = [draw for _, draw in draws]
    return PlainDraws(_way_of(asked), _columns(asked))


def _way_of(draws: Sequence[Draw]) -> Way:
    if all(draw.sampling.greedy for draw in draws):
        return Way.GREEDY
    return Way.FILTERED if any(_is_filtered(draw) for draw in draws) else Way.DRAWN


def _columns(draws: Sequence[Draw]) -> NDArray[np.float64]:
    """[6, n]"""
    return np.ascontiguousarray(np.array([_rule(draw) for draw in draws], np.float64).T)


IDLE_RULE = (1.0, 0.0, 1.0, 0.0, _EVERYTHING, 1.0)  # of a greedy row, and of one that nothing is drawn from


def _rule(draw: Draw) -> tuple[float, ...]:
    rules = draw.sampling
    if rules.greedy:
        return IDLE_RULE
    chance = uniform(draw.seed, draw.position)
    return rules.temperature, chance, 0.0, rules.min_p, rules.top_k or _EVERYTHING, rules.top_p


def _is_filtered(draw: Draw) -> bool:
    rules = draw.sampling
    return not rules.greedy and (rules.top_k > 0 or rules.top_p < 1 or rules.min_p > 0)


def draw_tokens(logits: Tensor, columns: Tensor | None, way: Way) -> tuple[Tensor, Tensor]:
    """A token a row of logits [n, V] and whether the row is finite: [n], [n]. `columns`: of `Rules`; not asked where `way` is greedy.

    The token is where the cumulated probability, in the order of the ids, passes the row's random number. Nothing here waits for the
    device, and no shape depends on what the logits or rules are.
    """
    best = logits.argmax(dim=-1)  # a NaN's place, where there is one
    peak = logits.gather(1, best[:, None])
    finite = peak[:, 0].isfinite()
    if way is Way.GREEDY:
        return best, finite
    assert columns is not None
    rules = Rules.of(columns)
    x = (logits.float() - peak.float()) / rules.temperature[:, None]
    mass = x.exp()
    if way is Way.FILTERED:
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
    kept[:, :1].fill_(True)  # top_p = 0 leaves the most probable token
    return torch.zeros_like(kept).scatter_(1, order, kept)
