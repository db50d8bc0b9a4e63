"""From token ids to text as they come: whole characters only, and never any of a stop string.

Knows a tokenizer and nothing of HTTP or the engine. One `Detokenizer` a sequence, used by one thread at a time; the
tokenizer itself is only read, so that all threads share it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

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
    """`push` a token, get the text that is certain by now; `flush` gives the rest."""

    def __init__(self, tokenizer: TokenDecoder, context: Sequence[int] = (), shown: Mapping[int, str] = NONE_SHOWN):
        """`context`: the tokens before the first one; their text is not given out again. `shown`: special tokens that
        are, and as what."""
        self._tokenizer = tokenizer
        self._shown_tokens = shown
        self._tokens = list(context[-_CONTEXT:])
        text = self._text()
        self._shown = len(text) - _count_unfinished(text)

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text = self._text()
        waiting = _count_unfinished(text)
        new = text[self._shown : len(text) - waiting]
        self._shown += len(new)
        if len(self._tokens) > _WINDOW:
            del self._tokens[:-_CONTEXT]
            self._shown = max(0, len(self._text()) - waiting)
        return new

    def flush(self) -> str:
        """What still waited for more bytes, as replacement characters."""
        new = self._text()[self._shown :]
        self._shown += len(new)
        return new

    def _text(self) -> str:
        return decode(self._tokenizer, self._tokens, self._shown_tokens)


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
