"""What a request's own tokens, its bias and its banned tokens do to its next logits."""

from collections.abc import Iterable, Sequence

import numpy as np

from graft.server.sampling.params import EDIT, Edits, Sampling


class TokenHistory:
    """The edits of a request's logits, kept up to date with each token drawn: no step counts its tokens anew."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], banned: Iterable[int] = ()):
        """`banned`: tokens that are out of the question until `unban`."""
        self._rules = sampling
        self._penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        self._edits = np.zeros(16, EDIT)
        self._places: dict[int, int] = {}
        self._drawn: set[int] = set()
        self._banned = frozenset(banned)
        for id, bias in sampling.logit_bias:
            self._edit(id)["before"] += bias
        if sampling.repetition_penalty != 1:
            for id in prompt:
                self._edit(id)["penalty"] = sampling.repetition_penalty
        for id in self._banned:
            self._edit(id)["after"] = -np.inf

    def add(self, id: int) -> None:
        """A token has been drawn."""
        if not self._penalised:
            return
        edit = self._edit(id)
        if id not in self._drawn:
            self._drawn.add(id)
            edit["penalty"] = self._rules.repetition_penalty
            edit["after"] -= self._rules.presence_penalty
        edit["after"] -= self._rules.frequency_penalty

    def unban(self) -> None:
        """The banned tokens may be drawn from now on. None of them has been."""
        for id in self._banned:
            self._edit(id)["after"] = 0
        self._banned = frozenset()

    @property
    def settled(self) -> bool:
        """Whether the edits stay what they are, whatever is drawn."""
        return not self._penalised and not self._banned

    @property
    def edits(self) -> Edits | None:
        """A view that holds until the next change; None where nothing is edited."""
        return self._edits[: len(self._places)] if self._places else None

    def _edit(self, id: int) -> np.void:
        """The token's own, made where it is missing; to be written to at once."""
        place = self._places.setdefault(id, len(self._places))
        if place == len(self._edits):
            self._edits = np.concatenate([self._edits, np.zeros(place, EDIT)])
        if not self._edits["penalty"][place]:
            self._edits[place] = (id, 0, 1, 0)
        edit: np.void = self._edits[place]
        return edit
