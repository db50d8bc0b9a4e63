"""Making probes: what the adapters of a run, and their bare base, say about a few texts (hub/adapters/probe.py says to what end).

The texts are graft's own and in everyday language, so that no training text leaves the house with an artifact.
"""

from functools import cached_property

import torch

from graft.hub.adapters.artifact import Artifact
from graft.hub.adapters.probe import Probe, ProbeQuestion, ProbeText, Table, gaps
from graft.hub.adapters.probe_replay import answers, likely_tokens, replay_of
from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows
from graft.hub.base.model import Base
from graft.hub.base.stored_weights import Arithmetic, StoredWeights, stored_base, stored_weights

TEXTS = (
    "The harbour was quiet until the ferry arrived with letters, fresh bread and 27 passengers from the mainland.",
    "Question: Which gas do plants take from the air, and which one do they give back? Answer: carbon dioxide, oxygen",
    "def area(width, height):\n    return width * height  # in square metres, never negative",
)
_TOKENS = 12  # of a text
_ROWS = 4  # the last ones of a text, whose answers are told
_TOP = 4  # tokens that are asked for after each


class Prober:
    """Makes the probes of one base's adapters. What is the same for all of them is found out once."""

    def __init__(self, base: Base):
        self._base = base
        self._questions: dict[int, tuple[ProbeQuestion, ...]] = {}

    def probe(self, artifact: Artifact) -> Probe:
        """The probe of an adapter that has just been trained. Raises what `artifact.fold` raises."""
        with torch.no_grad():
            forms = artifact.fold(self._plain)
        questions = self._choose_questions(self._base.spec.max_positions - _virtual_length(forms))
        base, adapter = self._ask(self._plain, forms, questions)
        exact, rounded = (self._ask(other, forms, questions) for other in (self._exact, self._rounded))
        return Probe(
            content=self._weights.content,
            stored=self._weights.dtype,
            texts=tuple(ProbeText(*one) for one in zip(TEXTS, questions, base, adapter, strict=True)),
            noise=gaps((base, exact[0]), (adapter, exact[1])),
            rounding=gaps((base, rounded[0]), (adapter, rounded[1])),
        )

    def _ask(self, base: Base, forms: tuple[Form, ...], questions: tuple[ProbeQuestion, ...]) -> list[list[Table]]:
        both = (replay_of(own, base.dtype) for own in ((), forms))
        return answers(base, [(own, questions) for own in both])

    def _choose_questions(self, room: int) -> tuple[ProbeQuestion, ...]:
        """What is asked where `room` positions are left for a text: after its last ids, the base's likeliest tokens."""
        length = min(_TOKENS, room)
        if length not in self._questions:
            tokenizer = self._base.tokenizer
            assert tokenizer is not None  # it was trained on text
            ids = [tuple(tokenizer(text)["input_ids"][:length]) for text in TEXTS]
            likely = likely_tokens(self._plain, ids, _ROWS, _TOP)
            self._questions[length] = tuple(ProbeQuestion(own, rows) for own, rows in zip(ids, likely, strict=True))
        return self._questions[length]

    @cached_property
    def _weights(self) -> StoredWeights:
        return stored_weights(self._base)

    @cached_property
    def _plain(self) -> Base:
        return stored_base(self._base, self._weights, Arithmetic())

    @cached_property
    def _exact(self) -> Base:
        return stored_base(self._base, self._weights, Arithmetic(torch.float64))

    @cached_property
    def _rounded(self) -> Base:
        return stored_base(self._base, self._weights, Arithmetic(rounded=True))


def _virtual_length(forms: tuple[Form, ...]) -> int:
    """Positions that come before the text."""
    counts = [len(form.rows) for form in forms if isinstance(form, InputRows)]
    return sum(counts + [form.text_start for form in forms if isinstance(form, CacheRows)])
