"""An adapter's own words: what its folder says about text, beside its weights. Torch-free.

A chat template, the tokens and texts that end its answers, and how its tokens are best drawn, in the files that transformers
writes. None of it is part of an adapter's digest: folders of one digest may differ in them. A stranger wrote these files, so
what can't be used is left aside and named, and never an error.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from graft.hub.errors import DataError

TEMPLATE, GENERATION, TOKENIZER = "chat_template.jinja", "generation_config.json", "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 1 << 18
MAX_JSON_BYTES = 4 << 20
MAX_STOP_CHARS = 1000
_MOST_STOPS = 16


@dataclass(frozen=True)
class GenerationDefaults:
    """How tokens are drawn unless a request says otherwise, under the names of generation_config.json; None: not said."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    def given(self) -> dict[str, float | int]:
        """Those that are said."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class AdapterWords:
    """`stop_ids`, `stop_tokens`: tokens that end an answer, by id or text; `stop_strings`: texts that do. `left_aside`: what
    could not be used, and why."""

    template: str | None = None
    stop_ids: tuple[int, ...] = ()
    stop_tokens: tuple[str, ...] = ()
    stop_strings: tuple[str, ...] = ()
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    left_aside: tuple[str, ...] = ()

    def to_files(self) -> dict[str, str]:
        """File name -> text, as `words_of` reads them; without `left_aside`, and with stop tokens by id only."""
        generation: dict[str, object] = {**self.defaults.given()}
        if self.stop_ids:
            generation["eos_token_id"] = list(self.stop_ids)
        if self.stop_strings:
            generation["stop_strings"] = list(self.stop_strings)
        files = {} if self.template is None else {TEMPLATE: self.template}
        return {**files, **({GENERATION: json.dumps(generation, indent=2)} if generation else {})}


NO_WORDS = AdapterWords()
# Of generation_config.json what would draw other tokens, and is nothing here -> as what it changes nothing, beside null, nothing and 0
_NOT_HERE: Mapping[str, object] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "max_length": 20,
    "typical_p": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
} | dict.fromkeys(
    (
        "bad_words_ids", "begin_suppress_tokens", "constraints", "diversity_penalty", "dola_layers", "encoder_no_repeat_ngram_size",
        "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id",
        "forced_eos_token_id", "frequency_penalty", "max_time", "min_length", "min_new_tokens", "no_repeat_ngram_size",
        "penalty_alpha", "presence_penalty", "sequence_bias", "suppress_tokens", "token_healing", "top_h", "watermarking_config",
    )
)  # fmt: skip


def chosen_defaults(values: Mapping[str, object]) -> GenerationDefaults:
    """What whoever trains an adapter chooses for it, held to what is read. Raises DataError for another name, or a bad value."""
    known = [one.name for one in fields(GenerationDefaults)]
    if unknown := sorted(values.keys() - set(known)):
        raise DataError(f"{unknown[0]!r} is no generation default. Known: {', '.join(known)}.")
    reader = _Reader(lambda name, most: None)
    defaults = reader.defaults(values)
    if reader.left_aside:
        raise DataError(f"{reader.left_aside[0]}.")
    return defaults


def read_words(folder: Path) -> AdapterWords:
    """Of an adapter's folder."""

    def read(name: str, most: int) -> bytes | None:
        path = folder / name
        try:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                return file.read(most)
        except OSError:
            return None

    return words_of(read)


def words_of(read: Callable[[str, int], bytes | None]) -> AdapterWords:
    """`read(name, most)`: the first `most` bytes of a file, None where there is none."""
    reader = _Reader(read)
    generation, tokenizer = reader.json(GENERATION), reader.json(TOKENIZER)
    template = reader.text(TEMPLATE, MAX_TEMPLATE_BYTES) or _default_template(tokenizer.get("chat_template"))
    return AdapterWords(
        template=template,
        stop_ids=_ids(generation.get("eos_token_id")),
        stop_tokens=reader.stops(TOKENIZER, "eos_token", _content(tokenizer.get("eos_token"))),
        stop_strings=reader.stops(GENERATION, "stop_strings", generation.get("stop_strings")),
        defaults=reader.defaults(generation),
        left_aside=tuple(reader.left_aside),
    )


class _Reader:
    def __init__(self, read: Callable[[str, int], bytes | None]):
        self._read = read
        self.left_aside: list[str] = []

    def text(self, name: str, most: int) -> str | None:
        data = self._read(name, most + 1)
        if data is None:
            return None
        try:
            if len(data) <= most:
                return data.decode() or None
            self.left_aside.append(f"{name} is larger than {most} bytes")
        except UnicodeDecodeError:
            self.left_aside.append(f"{name} is no text in UTF-8")
        return None

    def json(self, name: str) -> Mapping[str, object]:
        text = self.text(name, MAX_JSON_BYTES)
        try:
            value = json.loads(text) if text else {}
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            return value
        self.left_aside.append(f"{name} is no JSON object")
        return {}

    def stops(self, file: str, name: str, value: object) -> tuple[str, ...]:
        """Those texts of `value`, one or a list, that can end an answer: each is looked for with every token."""
        texts = _texts(value)
        short = tuple(text for text in texts if len(text) <= MAX_STOP_CHARS)[:_MOST_STOPS]
        if len(short) < len(texts):
            self.left_aside.append(
                f"{file}: {name} is more than {_MOST_STOPS} texts, or one of them longer than {MAX_STOP_CHARS} characters"
            )
        return short

    def defaults(self, generation: Mapping[str, object]) -> GenerationDefaults:
        """The numbers that can be used. `do_sample: false`, where it is said, is greedy."""
        self.left_aside.extend(
            f"{GENERATION}: {name} is not known here"
            for name, neutral in _NOT_HERE.items()
            if (value := generation.get(name)) and value != neutral
        )
        greedy = generation.get("do_sample") is False
        top_k, most = (self._number(generation, name, low, 1 << 31, (int,)) for name, low in _WHOLE)
        return GenerationDefaults(
            temperature=0.0 if greedy else self._number(generation, "temperature", 0, 100),
            top_p=self._number(generation, "top_p", 0, 1),
            top_k=None if top_k is None else int(top_k),
            min_p=self._number(generation, "min_p", 0, 1),
            repetition_penalty=self._number(generation, "repetition_penalty", 0.01, 100),
            max_new_tokens=None if most is None else int(most),
        )

    def _number(
        self,
        generation: Mapping[str, object],
        name: str,
        low: float,
        high: float,
        kinds: tuple[type[int] | type[float], ...] = (int, float),
    ) -> float | None:
        value = generation.get(name)
        if value is None:
            return None
        if isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.left_aside.append(f"{GENERATION}: {name} is no number from {low:g} to {high:g}")
        return None


_WHOLE = (("top_k", 0), ("max_new_tokens", 1))


def _ids(value: object) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(id for id in values if isinstance(id, int) and not isinstance(id, bool) and id >= 0)[:_MOST_STOPS]


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text and _is_text(text))


def _content(token: object) -> object:
    """Of a token in tokenizer_config.json: a text, or an object with one."""
    return token.get("content") if isinstance(token, dict) else token


def _default_template(value: object) -> str | None:
    """tokenizer_config.json's, as it was written before templates had a file: a text, or a list of named ones."""
    if isinstance(value, list):
        named = [one for one in value if isinstance(one, dict) and one.get("name") == "default"]
        value = named[0].get("template") if named else None
    fits = isinstance(value, str) and _is_text(value) and 0 < len(value.encode()) <= MAX_TEMPLATE_BYTES
    return value if fits and isinstance(value, str) else None


def _is_text(text: str) -> bool:
    """Whether it holds no half of a surrogate pair."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
