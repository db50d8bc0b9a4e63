"""A base and any number of adapters answer the questions of probes, all of them in one pass over the layers.

No adapter's arithmetic sees another's rows (hub/segments.py), so what is answered does not depend on who else is asked.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from graft.hub.attention import PackedAttention
from graft.hub.base import Base
from graft.hub.forms import CacheRows, Form, InputRows
from graft.hub.probe import Asked, Table
from graft.hub.segments import Segments

Forms = tuple[Form, ...]


@torch.inference_mode()
def answers(base: Base, asked: Sequence[tuple[Forms, Sequence[Asked]]]) -> list[list[Table]]:
    """What each adapter (`()`: the bare base) says to its questions: of each question, a table."""
    layout = _Layout(base)
    for forms, questions in asked:
        layout.add(forms, questions)
    logits = layout.run([forms for forms, _ in asked])
    texts = iter(logits.split([len(question.tokens) for _, questions in asked for question in questions]))
    return [[_table(next(texts), question) for question in questions] for _, questions in asked]


@torch.inference_mode()
def most_likely(base: Base, texts: Sequence[tuple[int, ...]], rows: int, top: int) -> list[tuple[tuple[int, ...], ...]]:
    """Of each text's last `rows` ids: the `top` tokens that the bare base finds most probable after it."""
    layout = _Layout(base)
    questions = [Asked(ids, ((),) * min(rows, len(ids))) for ids in texts]
    layout.add((), questions)
    likely = iter(layout.run([()]).topk(top, dim=-1).indices.tolist())
    return [tuple(tuple(next(likely)) for _ in question.tokens) for question in questions]


def _table(logits: Tensor, question: Asked) -> Table:
    return tuple(told(row, tokens) for row, tokens in zip(logits, question.tokens, strict=True))


def told(logits: Tensor, tokens: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities of `tokens` under one row of logits [V], at least in float32."""
    row = logits if logits.dtype == torch.float64 else logits.float()
    return tuple(row.log_softmax(dim=-1)[list(tokens)].tolist())


class _Layout:
    """Rows of a pass, one sequence after another: of each adapter its soft prompt, if it has one, then its texts."""

    def __init__(self, base: Base):
        self._base = base
        self._pieces: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._wanted: list[Tensor] = []
        self._prefixes: list[CacheRows | None] = []
        self._leaders: list[int | None] = []
        self._rows: list[int] = []  # of each adapter
        self._logits: list[int] = []
        self._total = 0

    def add(self, forms: Forms, questions: Sequence[Asked]) -> None:
        base, before = self._base, self._total
        prompt = next((form.rows for form in forms if isinstance(form, InputRows)), None)
        prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
        start, leader = prefix.text_start if prefix else 0, None
        if prompt is not None:
            start, leader = len(prompt), len(self._pieces)
            self._sequence(prompt.to(base.dtype), 0, None, None)
        for question in questions:
            self._sequence(base.embed(torch.tensor(question.ids)), start, prefix, leader)
            self._wanted.append(torch.arange(self._total - len(question.tokens), self._total))
        self._rows.append(self._total - before)
        self._logits.append(sum(len(question.tokens) for question in questions))

    def run(self, adapters: list[Forms]) -> Tensor:
        """The logits of the wanted rows."""
        base = self._base
        device = base.device
        segments = Segments(
            adapters, self._rows, self._logits, lm_head=base.spec.parts.lm_head, dtype=base.dtype, device=device
        )
        lengths = [len(piece) for piece in self._pieces]
        attention = PackedAttention(lengths, self._prefixes, device, self._leaders)
        return base.forward(
            torch.cat(self._pieces), torch.cat(self._positions), attention, segments, torch.cat(self._wanted)
        )

    def _sequence(self, rows: Tensor, start: int, prefix: CacheRows | None, leader: int | None) -> None:
        self._pieces.append(rows)
        self._positions.append(torch.arange(start, start + len(rows)))
        self._prefixes.append(prefix)
        self._leaders.append(leader)
        self._total += len(rows)
