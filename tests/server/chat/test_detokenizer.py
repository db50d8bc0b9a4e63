"""Text as it comes equals the text at the end: no broken characters, no stop string, nothing lost."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from graft.server.chat.detokenizer import (
    Detokenizer,
    Names,
    SpecialTokens,
    StopStrings,
    WindowDetokenizer,
    decode,
    find_backend,
)
from tests.conftest import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = st.lists(st.integers(0, 257), max_size=60)
TEXTS = st.text("aé€😀\n x", max_size=40)


@given(IDS | TEXTS.map(lambda text: TOKENIZER.encode(text)))
@settings(max_examples=300, deadline=None)
def test_pieces_together_are_the_whole(ids):
    detokenizer = Detokenizer(TOKENIZER)
    assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == decode(TOKENIZER, ids)


@given(TEXTS, st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_a_valid_text_never_shows_a_replacement_character(text, split):
    ids = TOKENIZER.encode(text)
    detokenizer = Detokenizer(TOKENIZER, ids[:split])
    pieces = [detokenizer.push(id) for id in ids[split:]]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert text.endswith("".join(pieces))


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As SentencePiece's: spaces as a letter, bytes as tokens of their own, a text's first space dropped."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁a",
        "a",
        "é",
        "▁é",
        "€x",
        "�",
        "▁▁",
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: id for id, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


FALLBACK = fallback_tokenizer()


def in_bytes(text: str) -> list[int]:
    return [3 + byte for byte in text.encode()]


@given(IDS | TEXTS.map(TOKENIZER.encode), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_the_librarys_stream_gives_what_decoding_anew_gives(ids, split):
    assert find_backend(TOKENIZER) is not None
    detokenizer, anew = Detokenizer(TOKENIZER, ids[:split]), WindowDetokenizer(TOKENIZER, ids[:split])
    said, expected, left = "", "", len(ids[split:])
    for id in ids[split:]:
        said, expected = said + detokenizer.push(id), expected + anew.push(id)
        assert expected.startswith(said) and len(expected) - len(said) <= 3  # a character's first bytes
    assert said + detokenizer.flush() == expected + anew.flush() or not left


PIECES = st.integers(259, 266).map(lambda id: [id]) | TEXTS.map(in_bytes)


@given(st.lists(PIECES, max_size=8))
@settings(max_examples=300, deadline=None)
def test_runs_of_bytes_stay_characters(parts):
    """Of a run of bytes of which the last character is not complete such a tokenizer makes replacement characters alone: two
    emojis in a row were given out as those."""
    ids = [id for part in parts for id in part]
    detokenizer = Detokenizer(FALLBACK)
    assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == decode(FALLBACK, ids)


@given(
    st.lists(st.text("ab", max_size=5), max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
@settings(max_examples=500, deadline=None)
def test_text_ends_before_the_first_stop_string(pieces, stops):
    checker = StopStrings(stops)
    given_out, whole = "", ""
    for piece in pieces:
        whole += piece
        given_out += checker.feed(piece)
        assert not any(stop in given_out for stop in stops)
        if checker.matched:
            break
    given_out += checker.flush()
    found = [whole.find(stop) for stop in stops if stop in whole]
    assert checker.matched == bool(found)
    assert given_out == (whole[: min(found)] if found else whole)


def test_only_what_may_become_a_stop_string_is_held_back():
    checker = StopStrings(["\n\nQ:"])
    assert checker.feed("yes\n") == "yes"
    assert checker.feed("no\n\nQ") == "\nno"
    assert checker.feed(".") == "\n\nQ."


def test_names_of_tokens():
    names = Names(TOKENIZER)
    assert names.name(1) == ("</s>", b"</s>")
    e, acute = TOKENIZER.encode("é")
    assert names.name(e)[1] + names.name(acute)[1] == "é".encode()
    assert [names.name(id)[0] for id in TOKENIZER.encode(" a")] == [" ", "a"]


def test_marks_that_are_special_tokens_are_shown_where_they_are_asked_for():
    """Calls of tools begin with special tokens in some families; all other special tokens stay out of the text."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|other|>"]})
    special = SpecialTokens(tokenizer)
    assert special.holds("[TOOL_CALLS]") and not special.holds("[ARGS]") and not special.holds("a")
    assert special.token("a") is not None and special.token("ab") is None
    shown = special.among(("[TOOL_CALLS]", "[ARGS]"))
    assert list(shown.values()) == ["[TOOL_CALLS]"]
    text = "hé[TOOL_CALLS][{é}]<|other|>" + "x" * 40 + "[TOOL_CALLS]ü"
    ids = tokenizer.encode(text)
    for seen in (shown, {}):
        expected = text.replace("<|other|>", "")
        expected = expected if seen else expected.replace("[TOOL_CALLS]", "")
        detokenizer = Detokenizer(tokenizer, ids[:1], seen)
        assert "h" + "".join(map(detokenizer.push, ids[1:])) + detokenizer.flush() == expected
