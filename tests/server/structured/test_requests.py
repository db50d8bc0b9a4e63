"""Constrained requests in one batch: adapters of every kind, alone and among others, preempted, late, and in other vocabularies."""

import json
import threading
from dataclasses import replace

import jsonschema_rs
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from graft.hub.base.model import Base
from graft.server.chat.detokenizer import decode
from graft.server.engine import steps as engine_steps
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.errors import ConstraintError
from graft.server.sampling.params import Sampling
from graft.server.structured import compiler as compiler_module
from graft.server.structured.constraint import (
    ANY_OBJECT,
    Chain,
    Choice,
    Constraint,
    Literal,
    OneOf,
    Regex,
    Repeat,
    Schema,
    SpecialToken,
    Tag,
    Tagged,
)
from tests.conftest import VOCAB, tiny_base, tiny_model
from tests.server.conftest import KINDS, write_folder

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}},
    "required": ["kind", "ages"],
    "additionalProperties": False,
}  # fmt: skip
CONSTRAINTS: tuple[Constraint | None, ...] = (
    Schema(json.dumps(SCHEMA)), Regex("[a-f]{2,30}"), None, Choice(("yes", "no", "日本")), ANY_OBJECT
)  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama")


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    top = tmp_path_factory.mktemp("adapters")
    return {kind: write_folder(top / kind, kind, base, seed) for seed, kind in enumerate(KINDS)}


def requests():
    """All kinds of adapters and constraints, greedy and drawn, with penalties and with a common beginning."""
    names, asked = [None, *KINDS], []
    for number in range(30):
        sampling = Sampling(0.0 if number % 4 == 3 else 1.0, seed=number, presence_penalty=0.5 * (number % 2))
        prompt = tuple(range(5, 5 + 20 + number % 3))
        asked.append(
            Request(prompt, names[number % len(names)], 60, sampling=sampling, constraint=CONSTRAINTS[number % 5])
        )
    return asked


@pytest.fixture(scope="module")
def alone(base, folders):
    """What each of them is answered by itself."""
    with Engine(base, folders, options=Options(cache_bytes=1 << 24, prefix_sharing=False)) as engine:
        return [engine.generate([request])[0].ids for request in requests()]


@pytest.mark.parametrize("runner", ["fast", "eager"])
def test_among_others_as_alone(base, folders, alone, runner):
    with Engine(base, folders, options=Options(cache_bytes=1 << 24, runner=runner)) as engine:
        results = engine.generate(requests())
    if runner == "fast":
        assert [result.ids for result in results] == alone
    for request, result in zip(requests(), results, strict=True):
        said = decode(base.tokenizer, result.ids)
        if result.finish_reason == "stop" and request.constraint == CONSTRAINTS[0]:
            jsonschema_rs.validate(SCHEMA, json.loads(said))
        elif request.constraint == CONSTRAINTS[3]:
            assert result.finish_reason == "stop" and said in CONSTRAINTS[3].texts


@pytest.mark.parametrize("patience", [0.0, 0.001, 5.0])
def test_preempted_ones_go_on_where_they_were(base, folders, alone, monkeypatch, patience):
    """Those too whose masks come late, and that are preempted before they come."""
    monkeypatch.setattr(engine_steps, "MASKS_S", patience)
    options = Options(cache_bytes=1 << 17, max_running=24, step_rows=64, prefix_sharing=False)
    with Engine(base, folders, options=options) as engine:
        engine.generate([Request((5,), kind, 1) for kind in KINDS])  # all are there: none keeps others waiting
        assert [result.ids for result in engine.generate(requests())] == alone
        assert engine.scheduler.preemptions > 0


def test_masks_that_come_late_change_nothing(base, folders, alone, monkeypatch):
    monkeypatch.setattr(engine_steps, "MASKS_S", 0.0)
    with Engine(base, folders, options=Options(cache_bytes=1 << 24)) as engine:
        repeated, lock = [], threading.Lock()
        repeat = engine.scheduler.repeat

        def counted(sequence):
            with lock:
                repeated.append(sequence)
            repeat(sequence)

        monkeypatch.setattr(engine.scheduler, "repeat", counted)
        assert [result.ids for result in engine.generate(requests())] == alone
    assert repeated


def test_a_short_text_is_the_beginning_of_the_long_one(base, folders, alone):
    with Engine(base, folders, options=Options(cache_bytes=1 << 24)) as engine:
        short = engine.generate([replace(request, max_tokens=7) for request in requests()])
    for result, whole in zip(short, alone, strict=True):
        assert result.ids == whole[:7]
        assert result.finish_reason == ("stop" if result.ids[-1] == 1 else "length")


CALL = Chain((Literal('<call>{"name": "f", "arguments": '), Schema(json.dumps(SCHEMA)), Literal("}</call>")))


@pytest.mark.parametrize(
    ("constraint", "right"),
    [
        (CALL, lambda text: text.startswith('<call>{"name": "f"') and json.loads(text[6:-7])["arguments"]["kind"]),
        (Repeat(Choice(("a", "b")), 2, 3, ", "), lambda text: text.split(", ")[:2] and 4 <= len(text) <= 7),
        (Repeat(Choice(("a", "b")), 0, 1), lambda text: text in ("", "a", "b")),
        (Repeat(Literal("ab"), 3, 3), lambda text: text == "ababab"),
        (
            OneOf((Literal("p"), Chain((Literal("q"), Regex("[0-9]{2}"))))),
            lambda text: text == "p" or text[1:].isdigit(),
        ),
        (Chain((SpecialToken("<s>"), Literal("x"))), lambda text: text == "x"),
        (Literal('"\\\n/'), lambda text: text == '"\\\n/'),
        (Regex("a/b\\n"), lambda text: text == "a/b\n"),
    ],
)
def test_what_tools_are_made_of(base, constraint, right):
    with Engine(base, options=Options(cache_bytes=1 << 22)) as engine:
        for seed in range(3):
            (result,) = engine.generate(
                [Request((5,), max_tokens=200, sampling=Sampling(seed=seed), constraint=constraint)]
            )
            assert result.finish_reason == "stop" and right(decode(base.tokenizer, result.ids)), result.ids


def test_from_a_trigger_on_nothing_but_the_tag_comes(base):
    tag = Tag("<", "<call>", Schema('{"enum":[1,2]}'), "</call>")
    bias = ((ord("<") - 33 + 2, 9.0),)
    with Engine(base, options=Options(cache_bytes=1 << 22)) as engine:
        asked = Request(
            (5,), max_tokens=60, sampling=Sampling(seed=1, logit_bias=bias), constraint=Tagged((tag,), least=1)
        )
        said = decode(base.tokenizer, engine.generate([asked])[0].ids)
    calls = said.split("<call>")[1:]
    assert calls and said.count("<") <= 2 * len(calls) + 1
    assert all(call[0] in "12" and call[1:].startswith("</call>"[: len(call) - 1]) for call in calls)


def fallback_base():
    """A vocabulary like Llama's and Gemma's: words that begin with ▁, and bytes for what there is no piece for."""
    pieces = ["<unk>", "</s>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "{", "}", '"', '▁"']
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "</s>", "<s>"])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    assert len(made) <= VOCAB
    return Base(tiny_model("llama"), made, id="test/fallback")


def test_characters_of_several_tokens_and_bytes_for_lack_of_pieces():
    base = fallback_base()
    texts = Choice((' a"é', "日本 {語}", "a a", "🙂"))
    schema = Schema('{"type":"array","items":{"type":"string","minLength":1,"maxLength":2},"minItems":2,"maxItems":2}')
    with Engine(base, options=Options(cache_bytes=1 << 22)) as engine:
        for constraint in (texts, schema):
            asked = [
                Request((264,), max_tokens=150, sampling=Sampling(seed=i), constraint=constraint) for i in range(12)
            ]
            for result in engine.generate(asked):
                assert result.finish_reason == "stop"
                said = base.tokenizer.decode([264, *result.ids], skip_special_tokens=True)[1:]
                assert said in texts.texts if constraint is texts else len(json.loads(said)) == 2, said


def test_a_base_whose_texts_have_no_end_refuses():
    base = tiny_base("llama")
    base.tokenizer.eos_token = None
    base.model.generation_config.eos_token_id = None
    with Engine(base, options=Options(cache_bytes=1 << 22)) as engine:
        with pytest.raises(ConstraintError, match="no token that ends"):
            engine.generate([Request((5,), constraint=ANY_OBJECT)])
        assert engine.generate([Request((5,), max_tokens=2)])[0].finish_reason == "length"


def test_an_older_library_is_told_before_it_makes_something_else_of_a_grammar(base, monkeypatch):
    """vLLM's environment has one."""
    monkeypatch.setattr(compiler_module, "_INSTALLED", "1.7.6")
    with Engine(base) as engine:
        with pytest.raises(ConstraintError, match=r"llguidance 1\.9\.1, and 1\.7\.6 is installed"):
            engine.generate([Request((5, 6), constraint=ANY_OBJECT)])
        assert len(engine.generate([Request((5, 6), max_tokens=2, ignore_eos=True)])[0].ids) == 2
