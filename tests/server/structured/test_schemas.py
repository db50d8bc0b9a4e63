"""Whatever a schema asks for, a text that ends by itself is JSON that it holds valid, and one that is cut off could go on."""

import json
import os
import sys
from collections import Counter
from concurrent.futures import Future

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.lib.standard_base import standard_base
from graft.hub.base.model import load_base
from graft.server.chat.detokenizer import decode
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.errors import ConstraintError
from graft.server.sampling.params import Sampling
from graft.server.structured.constraint import Schema
from tests.conftest import tiny_base
from tests.server.structured.schemas import schemas

SHORT, LONG = 24, 200
SEVERAL = 8  # schemas of one example: a batch
SLOW_EXAMPLES = int(os.environ.get("GRAFT_SCHEMAS", "10000")) // SEVERAL
CLOSING = '"}],'  # more probable than they are, so that a random text comes to an end


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny_base("llama"), options=Options(cache_bytes=1 << 24)) as made:
        yield made


def generate(engine, asked, limit, seed):
    ids = [id for letter in CLOSING for id in engine.base.tokenizer.encode(letter, add_special_tokens=False)]
    sampling = Sampling(seed=seed, logit_bias=tuple((id, 4.0) for id in ids))
    return engine.generate(
        [Request((5, 6, 7), constraint=Schema(text), max_tokens=limit, sampling=sampling) for text in asked]
    )


def accepted(engine, drawn):
    """Those that are not refused."""
    kept = []
    for schema in drawn:
        text = json.dumps(schema, ensure_ascii=False)
        try:
            engine.generate([Request((5,), constraint=Schema(text), max_tokens=0)])
        except ConstraintError:
            continue
        kept.append(text)
    return kept


def could_go_on(engine, schema, ids):
    """Whether another matcher, which has made no mask of this text, takes all of it and holds it unfinished or whole."""
    answer = Future()
    engine.compiler.request(Schema(schema), engine.ends, "", answer.set_result)
    state = answer.result().state
    return state.validate_tokens(list(ids)) == len(ids) and state.consume_tokens(list(ids)) and not state.is_error()


def as_float(text):
    """JSON knows no largest number."""
    return max(min(float(text), sys.float_info.max), -sys.float_info.max)


def check(engine, drawn, seed, counts):
    asked = accepted(engine, drawn)
    counts["refused"] += len(drawn) - len(asked)
    short, long = (generate(engine, asked, limit, seed) for limit in (SHORT, LONG))
    for text, cut, whole in zip(asked, short, long, strict=True):
        said = decode(engine.base.tokenizer, whole.ids)
        counts[whole.finish_reason] += 1
        assert whole.ids[: len(cut.ids)] == cut.ids, "a text that was cut off goes on in the same way"
        if whole.finish_reason == "stop":
            assert jsonschema_rs.is_valid(
                json.loads(text), json.loads(said, parse_float=as_float), validate_formats=True
            ), (text, said)
        else:
            assert "\N{REPLACEMENT CHARACTER}" not in said[:-1], (text, said)
            assert could_go_on(engine, text, whole.ids), (text, said)


def run(engine, examples):
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    @given(st.lists(schemas(), min_size=SEVERAL, max_size=SEVERAL), st.integers(0, 1 << 32))
    def holds(drawn, seed):
        check(engine, drawn, seed, counts)

    holds()
    return counts


def test_who_looks_again_sees_what_is_wrong(engine):
    right, wrong = (engine.base.tokenizer.encode(text, add_special_tokens=False) for text in ("12", "1a"))
    assert could_go_on(engine, '{"type": "integer"}', right)
    assert not could_go_on(engine, '{"type": "integer"}', wrong)


def test_what_ends_is_valid(engine):
    counts = run(engine, 40)
    print(counts)
    assert counts["stop"] > 150 and counts["refused"] < 60, counts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_schemas(engine):
    counts = run(engine, SLOW_EXAMPLES)
    assert counts["stop"] > 7 * SLOW_EXAMPLES and counts["refused"] < SLOW_EXAMPLES // 2, counts


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_schemas_on_a_real_base():
    """The demo's, fetched where it is not in the cache."""
    with Engine(load_base(standard_base(), dtype="float32", device="cpu")) as real:
        counts = run(real, 200 // SEVERAL)
    assert counts["stop"] > 120 and counts["refused"] < 40, counts
