"""An artifact's probe: what base and adapter said about a few texts in training, and what another run of them proves.

All numbers are log-probabilities in float32 arithmetic over the base's weights as they are stored, so they depend on no
machine and no serving dtype. The probe also records how far they lie from float64's (the noise), and from those over
rounded weights (the rounding): nothing else decides what counts as equal. It stands in graft.json, whoever wrote that, so
it is read with limits. Torch-free: the trainer makes one, the server runs it again.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Any

from graft.hub.errors import ArtifactError

_MOST_TEXTS, _MOST_TOKENS, _MOST_CHARACTERS = 8, 64, 1000
_MOST_NATS = 1e6  # of a log-probability: nothing a model says comes near, and products of two stay finite
_FORMAT = 2
_TIMES = 8  # a gap of so many times the noise is one that the noise explains
_FLOOR = 1e-4  # of the size: below it no difference matters, however small the noise

Table = tuple[tuple[float, ...], ...]  # per row, a log-probability per token that is asked for


@dataclass(frozen=True)
class ProbeQuestion:
    """After each of the last len(tokens) ids: how probable are these tokens?"""

    ids: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ProbeText:
    """One text, the ids that the base's tokenizer makes of its beginning, and the answers: of the base, the adapter."""

    text: str
    asked: ProbeQuestion
    base: Table
    adapter: Table


@dataclass(frozen=True)
class Gaps:
    """How far two runs lie apart (2-norms over all answers): in the bare base's, and in the adapter's effect on them."""

    base: float
    effect: float


@dataclass(frozen=True)
class Probe:
    """What was found in training. `content`: hub/base/stored_weights.py's hash of the base's weights."""

    content: str
    stored: str  # their dtype
    texts: tuple[ProbeText, ...]
    noise: Gaps
    rounding: Gaps

    @property
    def questions(self) -> tuple[ProbeQuestion, ...]:
        return tuple(text.asked for text in self.texts)

    def to_json(self) -> dict[str, Any]:
        """As it stands in graft.json."""
        return {
            "format": _FORMAT,
            "content": self.content,
            "stored": self.stored,
            "texts": [
                {
                    "text": one.text,
                    "ids": list(one.asked.ids),
                    "tokens": [list(row) for row in one.asked.tokens],
                    "base": [list(row) for row in one.base],
                    "adapter": [list(row) for row in one.adapter],
                }
                for one in self.texts
            ],
            "noise": {"base": self.noise.base, "effect": self.noise.effect},
            "rounding": {"base": self.rounding.base, "effect": self.rounding.effect},
        }


@dataclass(frozen=True)
class OldProbe:
    """Of graft before format 2: in the dtype of the training, on random ids, without the base's own answers."""

    dtype: str
    questions: tuple[ProbeQuestion, ...]
    adapter: tuple[Table, ...]


class ProofOutcome(Enum):
    PROVEN = "proven"  # it does here what it did when it was trained
    ROUNDED = "rounded copy"  # so far as a base of other, rounded weights can show
    UNPROVEN = "unproven"  # the probe can't tell
    REFUSED = "refused"


@dataclass(frozen=True)
class Verdict:
    """What a run of a probe proves. `gap`: of the effect, relative to its size; `noises`: in multiples of the noise."""

    outcome: ProofOutcome
    why: str
    gap: float | None = None
    noises: float | None = None


def read_probe(raw: Any, vocabulary: int) -> Probe | OldProbe:
    """The probe in a graft.json, for a base with this many tokens. Raises ArtifactError for a malformed one."""
    try:
        read = _read if "format" in raw else _read_old
        return read(raw, vocabulary)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ArtifactError(f"The probe in graft.json is malformed ({error!r}): train the adapter again.") from None


def judge(probe: Probe, base: Sequence[Table], adapter: Sequence[Table], content: str) -> Verdict:
    """What today's answers of the base (its weights' hash is `content`) and of the adapter prove."""
    base_then, adapter_then = _flatten(one.base for one in probe.texts), _flatten(one.adapter for one in probe.texts)
    base_now, adapter_now = _flatten(base), _flatten(adapter)
    effect_then, effect_now = _minus(adapter_then, base_then), _minus(adapter_now, base_now)
    apart = Gaps(_norm(_minus(base_now, base_then)), _norm(_minus(effect_now, effect_then)))
    if not all(map(math.isfinite, (apart.base, apart.effect))):
        return Verdict(ProofOutcome.REFUSED, "its log-probabilities on the probe's texts are not finite")
    size = Gaps(_norm(base_then), _norm(effect_then))
    gap, noises = apart.effect / size.effect if size.effect else math.inf, _times(apart.effect, probe.noise.effect)
    allowed = _allowance(probe.noise, size)
    if _within(apart, allowed):
        if allowed.effect >= size.effect:
            why = f"its effect on the probe's texts ({size.effect:.2g}) is no larger than what arithmetic blurs"
            return Verdict(ProofOutcome.UNPROVEN, why, gap, noises)
        return Verdict(ProofOutcome.PROVEN, f"{gap:.1e} from its effect in training", gap, noises)
    rounded = _allowance(probe.rounding, size)
    if content != probe.content and _within(apart, rounded):
        blurred = "" if rounded.effect < size.effect else ", which is as large as its effect"
        why = (
            f"the base's weights are another copy of those of its training ({probe.stored}): {gap:.1e} from its effect "
            f"there, and up to {rounded.effect / max(size.effect, 1e-300):.1e} is rounding{blurred}"
        )
        return Verdict(ProofOutcome.ROUNDED, why, gap, noises)
    if apart.base > (allowed if content == probe.content else rounded).base:
        base_noises = _times(apart.base, probe.noise.base)
        why = (
            f"the bare base answers its texts otherwise than in training, by {base_noises:.3g} times the noise of the "
            "arithmetic: it is another base, or one whose weights were changed"
        )
        return Verdict(ProofOutcome.REFUSED, why, gap, base_noises)
    why = (
        f"its effect on the probe's texts differs from that in training by {gap:.1e} of its size, {noises:.3g} times the "
        "noise of the arithmetic: its weights or config are not those of its training"
    )
    return Verdict(ProofOutcome.REFUSED, why, gap, noises)


def judge_old(probe: OldProbe, adapter: Sequence[Table]) -> Verdict:
    """What an old probe tells: a figure to look at. It can't say how much of it is rounding."""
    apart = _minus(_flatten(adapter), _flatten(probe.adapter))
    if not all(map(math.isfinite, apart)):
        return Verdict(ProofOutcome.REFUSED, "its log-probabilities on the probe's tokens are not finite")
    worst = max(map(abs, apart))
    why = f"an older graft recorded its probe in {probe.dtype}; a log-probability differs from it by {worst:.2g}"
    return Verdict(ProofOutcome.UNPROVEN, why)


def judge_serving(probe: Probe, base: Sequence[Table], adapter: Sequence[Table]) -> Verdict:
    """What the serving path's own answers show, whatever its dtype: finite, and an effect that points the same way.

    How much of an effect a path can show follows from how far its bare base lies from the recorded one.
    """
    base_then, adapter_then = _flatten(one.base for one in probe.texts), _flatten(one.adapter for one in probe.texts)
    base_now, adapter_now = _flatten(base), _flatten(adapter)
    if not all(map(math.isfinite, adapter_now)):
        return Verdict(
            ProofOutcome.REFUSED, "the logits are not finite on the path that serves it, on the probe's texts"
        )
    then, now = _minus(adapter_then, base_then), _minus(adapter_now, base_now)
    blur = _norm(_minus(base_now, base_then))
    if not _norm(then) > _TIMES * blur:  # not finite: neither
        return Verdict(
            ProofOutcome.UNPROVEN, f"the path that serves it blurs by {blur:.2g}, too much to show its effect"
        )
    if math.fsum(a * b for a, b in zip(then, now, strict=True)) > 0:
        return Verdict(ProofOutcome.PROVEN, "its effect points the same way on the path that serves it")
    why = "on the path that serves it, its effect on the probe's texts is not there, or points another way"
    return Verdict(ProofOutcome.REFUSED, why)


def gaps(base: tuple[Sequence[Table], Sequence[Table]], adapter: tuple[Sequence[Table], Sequence[Table]]) -> Gaps:
    """How far two runs lie apart; each argument is the answers of the one and of the other."""
    bases, adapters = [_flatten(one) for one in base], [_flatten(one) for one in adapter]
    effects = [_minus(a, b) for a, b in zip(adapters, bases, strict=True)]
    return Gaps(_norm(_minus(*bases)), _norm(_minus(*effects)))


def _allowance(noise: Gaps, size: Gaps) -> Gaps:
    return Gaps(
        max(_FLOOR * size.base, _TIMES * noise.base),
        max(_FLOOR * size.effect, _TIMES * noise.effect),
    )


def _within(apart: Gaps, allowed: Gaps) -> bool:
    return apart.base <= allowed.base and apart.effect <= allowed.effect


def _times(gap: float, noise: float) -> float:
    return gap / noise if noise else math.inf if gap else 0.0


def _flatten(tables: Iterable[Table]) -> list[float]:
    return list(chain.from_iterable(chain.from_iterable(tables)))


def _minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _norm(values: Sequence[float]) -> float:
    return math.hypot(*values)


def _read(raw: Mapping[str, Any], vocabulary: int) -> Probe:
    if raw["format"] != _FORMAT:
        raise ValueError(f"format {raw['format']!r} is not known here")
    probe = Probe(
        _word(raw["content"]),
        _word(raw["stored"]),
        tuple(_text(one, vocabulary) for one in raw["texts"]),
        *(Gaps(_number(raw[key]["base"]), _number(raw[key]["effect"])) for key in ("noise", "rounding")),
    )
    _require(0 < len(probe.texts) <= _MOST_TEXTS, f"a probe must hold 1 to {_MOST_TEXTS} texts")
    gaps_ = (probe.noise.base, probe.noise.effect, probe.rounding.base, probe.rounding.effect)
    _require(all(gap >= 0 for gap in gaps_), "a gap is negative")
    return probe


def _text(raw: Mapping[str, Any], vocabulary: int) -> ProbeText:
    asked = _read_question(raw["ids"], raw["tokens"], vocabulary)
    base, adapter = (_table(raw[key], asked) for key in ("base", "adapter"))
    text = _word(raw["text"])
    _require(len(text) <= _MOST_CHARACTERS, "a text is too long")
    return ProbeText(text, asked, base, adapter)


def _read_question(ids: Sequence[int], tokens: Sequence[Sequence[int]], vocabulary: int) -> ProbeQuestion:
    asked = ProbeQuestion(tuple(ids), tuple(tuple(row) for row in tokens))
    every = (*asked.ids, *chain.from_iterable(asked.tokens))
    _require(all(type(id) is int and 0 <= id < vocabulary for id in every), "an id is outside the vocabulary")
    _require(0 < len(asked.tokens) <= len(asked.ids) <= _MOST_TOKENS, "a text has the wrong length")
    _require(all(0 < len(row) <= _MOST_TOKENS for row in asked.tokens), "a row has the wrong length")
    return asked


def _table(raw: Sequence[Sequence[float]], asked: ProbeQuestion) -> Table:
    table = tuple(tuple(_number(value) for value in row) for row in raw)
    _require(all(abs(value) <= _MOST_NATS for value in chain(*table)), "a log-probability is out of all proportion")
    _require([len(row) for row in table] == [len(row) for row in asked.tokens], "answers and questions differ")
    return table


def _read_old(raw: Mapping[str, Any], vocabulary: int) -> OldProbe:
    asked = tuple(_read_question(one["tokens"], [one["top_tokens"]], vocabulary) for one in raw["sequences"])
    _require(0 < len(asked) <= _MOST_TEXTS, f"a probe must hold 1 to {_MOST_TEXTS} sequences")
    answers = tuple(_table([one["top_logprobs"]], own) for one, own in zip(raw["sequences"], asked, strict=True))
    return OldProbe(_word(raw["dtype"]), asked, answers)


def _number(raw: Any) -> float:
    _require(type(raw) in (int, float) and math.isfinite(raw), "a number is needed, and a finite one")
    return float(raw)


def _word(raw: Any) -> str:
    _require(isinstance(raw, str), "a text is needed")
    return raw


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
