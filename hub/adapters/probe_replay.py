"""A base and any number of adapters answer the questions of probes, all of them in one pass over the layers.

No adapter's arithmetic sees another's rows (hub/adapters/segments.py), so what is answered does not depend on who else is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.packed_attention import PackedAttention
from graft.hub.adapters.probe import ProbeQuestion, Table
from graft.hub.adapters.segments import Segments
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, form_bytes
from graft.hub.base.model import Base
from graft.hub.base.stored_weights import no_pause


@dataclass(frozen=True)
class Replayed:
    """An adapter (or, without anything, the bare base) made ready for a pass in one dtype."""

    rows: InputRows | CacheRows | None
    stack: Stack

    @cached_property
    def bytes(self) -> int:
        return self.stack.bytes + (0 if self.rows is None else form_bytes(self.rows))


def replay_of(forms: Sequence[Form], dtype: torch.dtype = torch.float32) -> Replayed:
    """`forms` as `Artifact.fold` makes them; none: the bare base."""
    rows = next((form for form in forms if isinstance(form, (InputRows, CacheRows))), None)
    return Replayed(rows, Stack([forms], dtype, torch.device("cpu")))


@torch.inference_mode()
def answers(
    base: Base, asked: Sequence[tuple[Replayed, Sequence[ProbeQuestion]]], pause: Callable[[], None] = no_pause
) -> list[list[Table]]:
    """What each adapter says to its questions: of each question, a table. `pause`: called wherever others can go on."""
    layout = _PassLayout(base)
    for adapter, questions in asked:
        layout.add(adapter, questions)
    logits = layout.run([adapter.stack for adapter, _ in asked], pause)
    texts = iter(logits.split([len(question.tokens) for _, questions in asked for question in questions]))
    return [[_table(next(texts), question, pause) for question in questions] for _, questions in asked]


@torch.inference_mode()
def likely_tokens(
    base: Base, texts: Sequence[tuple[int, ...]], rows: int, top: int
) -> list[tuple[tuple[int, ...], ...]]:
    """Of each text's last `rows` ids: the `top` tokens that the bare base finds most probable after it."""
    layout, bare = _PassLayout(base), replay_of((), base.dtype)
    questions = [ProbeQuestion(ids, ((),) * min(rows, len(ids))) for ids in texts]
    layout.add(bare, questions)
    likely = iter(layout.run([bare.stack]).topk(top, dim=-1).indices.tolist())
    return [tuple(tuple(next(likely)) for _ in question.tokens) for question in questions]


def log_probs_of(logits: Tensor, tokens: Sequence[int]) -> tuple[float, ...]:
    """The log-probabilities of `tokens` under one row of logits [V], at least in float32."""
    row = logits if logits.dtype == torch.float64 else logits.float()
    return tuple(row.log_softmax(dim=-1)[list(tokens)].tolist())


def _table(logits: Tensor, question: ProbeQuestion, pause: Callable[[], None]) -> Table:
    pause()
    return tuple(log_probs_of(row, tokens) for row, tokens in zip(logits, question.tokens, strict=True))


class _PassLayout:
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

    def add(self, adapter: Replayed, questions: Sequence[ProbeQuestion]) -> None:
        base, before, given = self._base, self._total, adapter.rows
        prefix = given if isinstance(given, CacheRows) else None
        start, leader = prefix.text_start if prefix else 0, None
        if isinstance(given, InputRows):
            start, leader = len(given.rows), len(self._pieces)
            self._sequence(given.rows.to(base.dtype), 0, None, None)
        for question in questions:
            self._sequence(base.embed(torch.tensor(question.ids)), start, prefix, leader)
            self._wanted.append(torch.arange(self._total - len(question.tokens), self._total))
        self._rows.append(self._total - before)
        self._logits.append(sum(len(question.tokens) for question in questions))

    def run(self, stacks: Sequence[Stack], pause: Callable[[], None] = no_pause) -> Tensor:
        """The logits of the wanted rows."""
        base = self._base
        head = base.spec.parts.lm_head
        steps = [
            Step(stack, RowOwners(0, (rows,)), lm_head=head, logit_rows=RowOwners(0, (wanted,)))
            for stack, rows, wanted in zip(stacks, self._rows, self._logits, strict=True)
        ]
        attention = PackedAttention([len(piece) for piece in self._pieces], self._prefixes, base.device, self._leaders)
        return base.forward(
            torch.cat(self._pieces),
            torch.cat(self._positions),
            attention,
            Segments(steps, self._rows, self._logits, lm_head=head, pause=pause),
            torch.cat(self._wanted),
        )

    def _sequence(self, rows: Tensor, start: int, prefix: CacheRows | None, leader: int | None) -> None:
        self._pieces.append(rows)
        self._positions.append(torch.arange(start, start + len(rows)))
        self._prefixes.append(prefix)
        self._leaders.append(leader)
        self._total += len(rows)
