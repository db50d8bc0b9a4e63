"""What a request's own tokens, its bias and its banned tokens do to its next logits."""

from collections.abc import Iterable, Sequence

import numpy as np

from graft.server.sampling.params import EDIT, Edits, Sampling


class BadWords:
    """Which tokens would complete a banned word, after those drawn so far."""

    def __init__(self, words: Iterable[Sequence[int]]):
        """`words`: each as token ids, none of them empty."""
        banned = [tuple(word) for word in words]
        self._always = frozenset(word[0] for word in banned if len(word) == 1)
        # A word's beginning -> what completes it: there may be thousands of words, and each token asks.
        self._ends: dict[tuple[int, ...], set[int]] = {}
        for word in banned:
            if len(word) > 1 and word[-1] not in self._always:
                self._ends.setdefault(word[:-1], set()).add(word[-1])
        self._lengths = sorted({len(beginning) for beginning in self._ends})
        self._latest: tuple[int, ...] = ()
        self.completing: frozenset[int] = frozenset()  # what is banned after the latest tokens alone

    def add(self, id: int) -> None:
        """A token has been drawn."""
        if self._lengths:
            self._latest = (*self._latest, id)[-self._lengths[-1] :]
            self.completing = frozenset().union(*(self._ends.get(self._latest[-n:], ()) for n in self._lengths))

    @property
    def settled(self) -> bool:
        """Whether the same tokens are banned after whatever is drawn."""
        return not self._lengths

    @property
    def banned(self) -> frozenset[int]:
        return self._always | self.completing


class TokenHistory:
    """The edits of a request's logits, kept up to date with each token drawn: no step counts its tokens anew."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], banned: Iterable[int] = ()):
        """`banned`: tokens that are out of the question until `unban`."""
        self._rules = sampling
        self._penalised = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
        self._edits = np.zeros(16, EDIT)
        self._places: dict[int, int] = {}
        self._drawn: set[int] = set()
        self._words = BadWords(sampling.bad_words)
        self._held = frozenset(banned)
        self._banned: dict[int, float] = {}  # what else is added to their logits
        for id, bias in sampling.logit_bias:
            self._edit(id)["before"] += bias
        if sampling.repetition_penalty != 1:
            for id in prompt:
                self._edit(id)["penalty"] = sampling.repetition_penalty
        self._ban(self._held | self._words.banned)

    def add(self, id: int) -> None:
        """A token has been drawn."""
        if self._penalised:
            self._penalise(id)
        before = self._words.completing
        self._words.add(id)
        self._lift(before - self._words.completing - self._held)
        self._ban(self._words.completing - before - self._held)

    def unban(self) -> None:
        """The tokens held back may be drawn from now on. None of them has been."""
        self._lift(self._held - self._words.banned)
        self._held = frozenset()

    @property
    def settled(self) -> bool:
        """Whether the edits stay what they are, whatever is drawn."""
        return self._words.settled and not (self._penalised or self._held)

    @property
    def bans_words(self) -> bool:
        return bool(self._rules.bad_words)

    @property
    def exhausted(self) -> bool:
        """Whether nothing that is allowed may come next."""
        return bool(self._rules.allowed_ids) and self._rules.allowed_ids <= self._banned.keys()

    @property
    def edits(self) -> Edits | None:
        """A view that holds until the next change; None where nothing is edited."""
        return self._edits[: len(self._places)] if self._places else None

    def _penalise(self, id: int) -> None:
        edit = self._edit(id)
        if id not in self._drawn:
            self._drawn.add(id)
            edit["penalty"] = self._rules.repetition_penalty
            edit["after"] -= self._rules.presence_penalty
        edit["after"] -= self._rules.frequency_penalty

    def _lift(self, ids: frozenset[int]) -> None:
        """These are banned no more."""
        for id in ids:
            self._edit(id)["after"] = self._banned.pop(id)

    def _ban(self, ids: frozenset[int]) -> None:
        """These, which were not banned."""
        for id in ids:
            edit = self._edit(id)
            self._banned[id] = float(edit["after"])
            edit["after"] = -np.inf

    def _edit(self, id: int) -> np.void:
        """The token's own, made where it is missing; to be written to at once."""
        place = self._places.setdefault(id, len(self._places))
        if place == len(self._edits):
            self._edits = np.concatenate([self._edits, np.zeros(place, EDIT)])
        if not self._edits["penalty"][place]:
            self._edits[place] = (id, 0, 1, 0)
        edit: np.void = self._edits[place]
        return edit
