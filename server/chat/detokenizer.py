"""From token ids to text as they come: whole characters only, and never any of a stop string.

Knows a tokenizer and nothing of HTTP or the engine. One `Detokenizer` a sequence, used by one thread at a time; the
tokenizer itself is only read, so that all threads share it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_UNFINISHED = 3  # a character's bytes that may still be waiting for the last one
_CONTEXT = 8  # tokens before the next one that its text may depend on: spaces, unfinished characters
NONE_SHOWN: Mapping[int, str] = {}
_WINDOW = 24  # tokens decoded again with each new one, at most


class TokenDecoder(Protocol):
    """What is asked of a base's tokenizer here."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str | list[str]: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str | list[str] | None: ...


class Detokenizer:
    """`push` a token, get the text that is certain by now; `flush` gives the rest.

    The tokenizers library's own stream decodes them. Of tokens that it makes no text of, more than a character can need, and where it has
    no stream for a tokenizer, the last ones are decoded anew with each.
    """

    def __init__(self, tokenizer: TokenDecoder, context: Sequence[int] = (), shown: Mapping[int, str] = NONE_SHOWN):
        """`context`: the tokens before the first one; their text is not given out again. `shown`: special tokens that
        are, and as what."""
        self._tokenizer, self._shown = tokenizer, shown
        self._recent = _Recent(_beginning(tokenizer, context))
        self._waiting: list[int] = []  # tokens whose text the stream has not told
        self._backend = None if shown else find_backend(tokenizer)
        self._window: WindowDetokenizer | None = WindowDetokenizer(
            tokenizer, context, shown
        )  # None: the stream goes on
        self._stream = self._begin_stream()

    def push(self, token: int) -> str:
        if self._window is not None:
            return self._push_anew(token)
        new = self._step(token)
        self._waiting.append(token)
        if new is None:
            incomplete = self._backend is not None and len(self._waiting) <= _UNFINISHED
            return "" if incomplete else self._decode_anew()
        for each in self._waiting[:-1]:
            self._recent.add(each, whole=False)
        self._recent.add(token, whole=True)
        self._waiting.clear()
        return new

    def flush(self) -> str:
        """What still waited for more bytes, as replacement characters."""
        window = self._window or WindowDetokenizer(self._tokenizer, self._recent.tokens, self._shown)
        new = "".join(map(window.push, self._waiting))
        self._waiting = []
        return new + window.flush()

    def _decode_anew(self) -> str:
        """The text of those that the stream makes nothing of, until it is whole again."""
        self._window = WindowDetokenizer(self._tokenizer, self._recent.tokens, self._shown)
        waiting, self._waiting = self._waiting, []
        return "".join(map(self.push, waiting))

    def _push_anew(self, token: int) -> str:
        assert self._window is not None
        new = self._window.push(token)
        self._recent.add(token, whole=self._window.whole)
        self._stream = self._begin_stream()
        return new

    def _begin_stream(self) -> DecodeStream | None:
        """From the last tokens on, where their text is whole and given out."""
        if self._backend is None or (self._window is not None and not self._window.whole):
            return None
        self._window = None
        return DecodeStream(self._recent.tokens, skip_special_tokens=True)

    def _step(self, token: int) -> str | None:
        """What it tells by now; None where that does not end with a whole character, or is nothing."""
        assert self._stream is not None and self._backend is not None  # no window, so there is a stream
        try:
            return self._stream.step(self._backend, token)
        except Exception:  # what was decoded before is no beginning of what is now
            self._backend = None
            return None


class WindowDetokenizer:
    """The same for any tokenizer, by decoding the last tokens anew with each."""

    def __init__(self, tokenizer: TokenDecoder, context: Sequence[int] = (), shown: Mapping[int, str] = NONE_SHOWN):
        self._tokenizer = tokenizer
        self._shown_tokens = shown
        self._recent = _Recent(_beginning(tokenizer, context))
        text = self._text()
        self._shown = len(text) - _count_unfinished(text)
        self.whole = not text.endswith(REPLACEMENT)  # no character is waiting for more bytes

    def push(self, token: int) -> str:
        self._recent.tokens.append(token)
        text = self._text()
        waiting = _count_unfinished(text)
        new = text[self._shown : len(text) - waiting]
        self._shown += len(new)
        self.whole = not text.endswith(REPLACEMENT)
        if self._recent.cut(whole=self.whole):
            self._shown = max(0, len(self._text()) - waiting)
        return new

    def flush(self) -> str:
        """What still waited for more bytes, as replacement characters."""
        new = self._text()[self._shown :]
        self._shown += len(new)
        return new

    def _text(self) -> str:
        return decode(self._tokenizer, self._recent.tokens, self._shown_tokens)


class _Recent:
    """The last tokens, from a place on where the text was whole: some tokenizers make of a run of bytes that begins within a
    character nothing but replacement characters."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens = list(tokens)
        self._whole: list[int] = []  # places behind which the text was

    def add(self, token: int, *, whole: bool) -> None:
        self.tokens.append(token)
        self.cut(whole=whole)

    def cut(self, *, whole: bool) -> bool:
        """Forget what no later token's text depends on, where there is enough of it. `whole`: the text is, by now."""
        count = len(self.tokens)
        if whole:
            self._whole.append(count)
        if count <= _WINDOW:
            return False
        at = max((place for place in self._whole if place <= count - _CONTEXT), default=0)
        if not at and count > 4 * _WINDOW:  # no text, whatever it is
            at = count - _CONTEXT
        del self.tokens[:at]
        self._whole = [place - at for place in self._whole if place > at]
        return at > 0


def _beginning(tokenizer: TokenDecoder, context: Sequence[int]) -> Sequence[int]:
    """The last tokens of a context, from one on that begins a character."""
    for count in range(_CONTEXT, _CONTEXT + _UNFINISHED + 1):
        if not decode(tokenizer, context[-count:]).startswith(REPLACEMENT):
            return context[-count:]
    return context[-_CONTEXT:]


class StopStrings:
    """Lets text through up to the first stop string, holding back what may be the beginning of one.

    `included`: the stop string itself is let through, too.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False):
        self._stops = tuple(stops)
        self._included = included
        self._held = ""
        self.match: str | None = None  # the one that was found

    @property
    def matched(self) -> bool:
        return self.match is not None

    def feed(self, text: str) -> str:
        """The text that may be given out. Once `matched`, nothing more is."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        matches = [(at, len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            at, length, self.match = min(matches)
            self._held = ""
            return text[: at + length if self._included else at]
        keep = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class SpecialTokens:
    """Which texts are special tokens of a tokenizer's: those that decoding leaves out."""

    def __init__(self, tokenizer: TokenDecoder):
        self._tokenizer = tokenizer
        self.id = lru_cache(maxsize=1024)(self._id)

    def holds(self, text: str) -> bool:
        return self.id(text) is not None

    def among(self, texts: Sequence[str]) -> dict[int, str]:
        """Id -> text of those that are."""
        return {id: text for text in texts if (id := self.id(text)) is not None}

    def token(self, text: str) -> int | None:
        """The id of a text that is one token, special or not."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return ids[0] if len(ids) == 1 else None

    def _id(self, text: str) -> int | None:
        id = self.token(text)
        return None if id is None or decode(self._tokenizer, [id]) else id


class Names:
    """Tokens as log-probability reports show them: their text and their bytes."""

    def __init__(self, tokenizer: TokenDecoder):
        self._tokenizer = tokenizer
        self.name = lru_cache(maxsize=65536)(self._name)

    def _name(self, token: int) -> tuple[str, bytes]:
        """A token's text (with the space before it, special tokens spelt out) and its bytes, perhaps part of a
        character's."""
        text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # of one sequence
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):  # an id beyond the vocabulary has none
            piece = ""
        if REPLACEMENT in text:
            raw = _raw_bytes(piece)
            return (text, text.encode()) if raw is None else (text, raw)
        if piece.startswith("▁") and not text.startswith(" "):  # decoding a text's first token drops its space
            text = " " + text
        return text, text.encode()


def find_backend(tokenizer: TokenDecoder) -> Tokenizer | None:
    """The library's own tokenizer, where there is one."""
    from transformers import PreTrainedTokenizerFast

    return tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None


def certain_text(text: str) -> str:
    """`text` without what the next token may still change."""
    return text[: len(text) - _count_unfinished(text)]


def decode(tokenizer: TokenDecoder, ids: Sequence[int], shown: Mapping[int, str] = NONE_SHOWN) -> str:
    """Text without special tokens but those to be `shown`."""
    if at := next((i for i, id in enumerate(ids) if id in shown), -1) + 1:
        return decode(tokenizer, ids[: at - 1]) + shown[ids[at - 1]] + decode(tokenizer, ids[at:], shown)
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _count_unfinished(text: str) -> int:
    """Replacement characters at the end that the next token may still turn into a character."""
    return min(len(text) - len(text.rstrip(REPLACEMENT)), _UNFINISHED)


def overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that begins `mark`, and may yet become it."""
    most = min(len(mark) - 1, len(text))
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)


def _raw_bytes(piece: str) -> bytes | None:
    """The bytes that a vocabulary's piece stands for: <0xE2>, or letters of the byte alphabet; None if neither."""
    if len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    alphabet = _byte_alphabet()
    return bytes(alphabet[c] for c in piece) if all(c in alphabet for c in piece) else None


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level vocabularies: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
