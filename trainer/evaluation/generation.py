"""Greedy generation for scoring: a prefill that keeps keys and values, then one row a sequence and step.

Built from the packed attention's own parts (what was seen so far is a prefix), so it needs no cache of its own.
The server generates for requests; this only answers evaluation prompts.
"""

from collections.abc import Sequence

import torch

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.packed_attention import RecordingAttention
from graft.hub.adapters.serving_forms import CacheRows, Form
from graft.hub.base.model import Base

_BATCH = 64  # sequences generated together


def generate(
    base: Base, forms: tuple[Form, ...], prompts: Sequence[Sequence[int]], new_tokens: int, end: int
) -> list[list[int]]:
    """Greedy continuations without `end`, at most `new_tokens` each. `forms` as served: no input rows."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    made: dict[int, list[int]] = {}
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        answers = _generate_batch(base, forms, [prompts[i] for i in some], new_tokens, end)
        made.update(zip(some, answers, strict=True))
    return [made[i] for i in range(len(prompts))]


def _generate_batch(
    base: Base, forms: tuple[Form, ...], prompts: Sequence[Sequence[int]], new_tokens: int, end: int
) -> list[list[int]]:
    stack = Stack([forms], base.dtype, base.device)
    own = next((form for form in forms if isinstance(form, CacheRows)), None)
    offset = own.text_start if own else 0
    answers: list[list[int]] = [[] for _ in prompts]
    active, inputs = list(range(len(prompts))), prompts
    seen: Sequence[CacheRows | None] = [own] * len(prompts)
    positions = [offset] * len(prompts)
    for _ in range(new_tokens):
        tokens, seen = _advance(base, stack, inputs, positions, seen)
        going = [i for i, token in enumerate(tokens) if token != end]
        for i in going:
            answers[active[i]].append(tokens[i])
        positions = [positions[i] + len(inputs[i]) for i in going]
        active, seen, inputs = [active[i] for i in going], [seen[i] for i in going], [[tokens[i]] for i in going]
        if not active:
            break
    return answers


def _advance(
    base: Base,
    stack: Stack,
    inputs: Sequence[Sequence[int]],
    positions: Sequence[int],
    seen: Sequence[CacheRows | None],
) -> tuple[list[int], list[CacheRows]]:
    """One pass: (the most probable next token of each sequence, all its keys and values so far)."""
    device, lengths = base.device, [len(ids) for ids in inputs]
    rows = base.embed(torch.tensor([id for ids in inputs for id in ids], device=device))
    at = torch.cat([torch.arange(first, first + n) for first, n in zip(positions, lengths, strict=True)])
    last = torch.tensor(lengths).cumsum(0) - 1
    step = Step(
        stack,
        RowOwners(0, (len(rows),)),
        lm_head=base.spec.parts.lm_head,
        logit_rows=RowOwners(0, (len(inputs),)),
    )
    attention = RecordingAttention(lengths, seen, device)
    logits = base.forward(rows, at.to(device), attention, step, last.to(device))
    return logits.argmax(dim=-1).tolist(), _append_rows(attention, seen, lengths)


def _append_rows(
    attention: RecordingAttention, seen: Sequence[CacheRows | None], lengths: list[int]
) -> list[CacheRows]:
    """What each sequence had seen, and the new rows behind it."""
    keys, values = attention.keys_and_values()
    made = []
    for old, key, value in zip(seen, keys.split(lengths, dim=1), values.split(lengths, dim=1), strict=True):
        if old is not None:
            key = torch.cat([old.keys.to(key.dtype), key], dim=1)
            value = torch.cat([old.values.to(value.dtype), value], dim=1)
        made.append(CacheRows(key, value, text_start=0))
    return made
