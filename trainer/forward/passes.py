"""One pass of packed sequences through the base with the detours of their adapters: for training and for scoring.

Knows nothing of losses, optimisers or metrics.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.packed_attention import PackedAttention, cache_rows
from graft.hub.adapters.segments import Segments
from graft.hub.adapters.serving_forms import Form, InputRows
from graft.hub.base.model import Base
from graft.trainer.data.packing import Pack, PackedRows, lay_out


@contextmanager
def run_pass(
    base: Base,
    pack: Pack,
    forms: Sequence[tuple[Form, ...]],
    generators: Sequence[torch.Generator] | None = None,
) -> Iterator[tuple[Tensor, PackedRows]]:
    """(logits [n, V] of the rows that carry a loss, the rows). Run the backward within the context."""
    rows = lay_out(pack, list(forms), base.embed, base.device)
    head = base.spec.parts.lm_head
    steps = [
        Step(
            Stack([own], base.dtype, base.device),
            RowOwners(0, (count,)),
            lm_head=head,
            logit_rows=RowOwners(0, (wanted,)),
            generators=None if generators is None else [generators[i]],
        )
        for i, (own, count, wanted) in enumerate(zip(forms, rows.row_counts, rows.logit_counts, strict=True))
    ]
    step = Segments(steps, rows.row_counts, rows.logit_counts, lm_head=head)
    attention = PackedAttention(rows.lengths, rows.prefixes, base.device, rows.leaders)
    with base.attachment.activate(step):
        yield base.forward(rows.rows, rows.positions, attention, None, rows.logit_rows), rows


def served_forms(base: Base, forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """The forms as the server holds them: a soft prompt's rows run once through the base and are kept as cache."""
    prompt = next((form for form in forms if isinstance(form, InputRows)), None)
    if prompt is None:
        return forms
    count = prompt.rows.shape[0]
    step = Step(
        Stack([forms], base.dtype, base.device),
        RowOwners(0, (count,)),
        lm_head=base.spec.parts.lm_head,
        logit_rows=RowOwners(0, (1,)),
    )
    with torch.no_grad():
        cache = cache_rows(base, prompt.rows, step)
    return (*(form for form in forms if form is not prompt), cache)
