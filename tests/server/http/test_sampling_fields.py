"""Every field that says how tokens are drawn and what is reported, through the real OpenAI client, against the engine alone.

The tiny base has a byte a token, so that a word is a sequence of tokens.
"""

import math

import openai
import pytest
import torch

from graft.hub.adapters.artifact import load_artifact
from graft.server.cache.step import BLOCK_ROWS
from graft.server.chat.detokenizer import Names, decode
from graft.server.engine.request import Request
from graft.server.sampling.params import Sampling
from tests.conftest import VOCAB, tiny_base
from tests.hub.adapters.methods.cases import served_logits
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, ask, serving

BASE = "test/llama"
PROMPT = "The quick brown fox"
GREEDY = {"temperature": 0, "max_tokens": 40}
KINDS = ("lora", "prefix", "ia3")


@pytest.fixture(scope="module")
def base():
    made = tiny_base("llama")
    made.tokenizer.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def folders(base, tmp_path_factory):
    top = tmp_path_factory.mktemp("adapters")
    return {kind: write_folder(top / kind, kind, base, seed) for seed, kind in enumerate(KINDS)}


@pytest.fixture(scope="module")
def live(base, folders):
    with serving(base, folders) as running:
        yield running


@pytest.fixture(scope="module")
def client(live):
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def complete(client, model=BASE, prompt=PROMPT, **wanted):
    known = {
        "max_tokens",
        "temperature",
        "n",
        "seed",
        "logprobs",
        "echo",
        "stream",
        "stream_options",
        "stop",
        "best_of",
    }
    extra = {key: wanted.pop(key) for key in [*wanted] if key not in known}
    extra.setdefault("ignore_eos", True)
    return client.completions.create(model=model, prompt=prompt, extra_body=extra, **wanted)


def text_of(answer) -> str:
    return answer.choices[0].text


def ids_of(client, *args, **wanted) -> list[int]:
    """The tokens of an answer; -1 for a byte that is no character of its own."""
    tokens = complete(client, *args, logprobs=0, **wanted).choices[0].logprobs.tokens
    return [TOKENS.get(token, -1) for token in tokens]


@pytest.fixture(scope="module", autouse=True)
def tokens(live):
    names = Names(live.engine.base.tokenizer)
    texts = {id: names.name(id)[0] for id in range(VOCAB)}
    TOKENS.update({text: id for id, text in texts.items() if text.isascii() and text and not text.startswith("<")})


TOKENS: dict[str, int] = {}


@pytest.mark.parametrize("model", [BASE, *KINDS])
@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"presence_penalty": 1.5}, Sampling(0, presence_penalty=1.5)),
        ({"frequency_penalty": 2}, Sampling(0, frequency_penalty=2)),
        ({"frequency_penalty": -2}, Sampling(0, frequency_penalty=-2)),
        ({"repetition_penalty": 1.7}, Sampling(0, repetition_penalty=1.7)),
        ({"logit_bias": {"5": 3.5, "70": -100, "71": 2}}, Sampling(0, logit_bias=((5, 3.5), (70, -100), (71, 2)))),
        ({"allowed_token_ids": [70, 71, 90]}, Sampling(0, allowed_ids=frozenset((70, 71, 90)))),
        ({"temperature": 1.2, "min_p": 0.3, "seed": 3}, Sampling(1.2, min_p=0.3, seed=3)),
        ({"temperature": 1.2, "top_k": 4, "seed": -3}, Sampling(1.2, top_k=4, seed=-3 % (1 << 63))),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_field_is_the_engines_rule_of_that_name(live, client, base, model, fields, rules):
    ids = tuple(base.tokenizer.encode(PROMPT))
    asked = Request(ids, None if model == BASE else model, 40, ignore_eos=True, sampling=rules)
    (result,) = live.engine.generate([asked])
    text = text_of(complete(client, model, **{**GREEDY, **fields}))
    assert text == decode(base.tokenizer, [*ids, *result.ids])[len(PROMPT) :]
    assert text != text_of(complete(client, model, **GREEDY)) or "seed" in fields


def test_bias_and_allowed_tokens_decide(client):
    plain = ids_of(client, **GREEDY)
    assert ids_of(client, **{**GREEDY, "logit_bias": {"77": 100}}) == [77] * 40
    first = next(id for id in plain if id >= 0)
    assert first not in ids_of(client, **{**GREEDY, "logit_bias": {str(first): -100}})
    assert set(ids_of(client, **{**GREEDY, "allowed_token_ids": [70, 71]})) <= {70, 71}
    chat = client.chat.completions.create(
        model="lora", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, temperature=0, logit_bias={"77": 100}
    )
    assert chat.choices[0].message.content == 5 * next(text for text, id in TOKENS.items() if id == 77)


@pytest.mark.parametrize("model", [BASE, *KINDS])
def test_bad_words_are_not_written(client, base, model):
    """The text is the same up to where the word would have come; its beginning alone is no word."""
    printable = [id for text, id in TOKENS.items() if text.isalnum()]
    asked = {**GREEDY, "allowed_token_ids": printable}
    plain = ids_of(client, model, **asked)
    word = base.tokenizer.decode(plain[3:6])
    found = ids_of(client, model, bad_words=[word], **asked)
    spelt = base.tokenizer.encode(word)
    first = next(i for i in range(len(plain)) if plain[i : i + len(spelt)] == spelt)
    assert found[: first + 2] == plain[: first + 2] and found[first + 2] != plain[first + 2]
    assert not any(found[i : i + len(spelt)] == spelt for i in range(len(found)))


def test_the_end_comes_where_no_allowed_token_may(live, client):
    asked = {"model": BASE, "prompt": "x", "max_tokens": 9, "allowed_token_ids": [TOKENS["a"]]}
    ended = live.post("/v1/completions", asked | {"bad_words": ["aaa"]}).json["choices"][0]
    assert ended["text"] == "aa" and ended["finish_reason"] == "stop"
    refused = live.post("/v1/completions", asked | {"bad_words": ["a"]})
    assert refused.status == 400 and "allowed_token_ids" in refused.error["message"]
    assert live.idle()


def test_bans_beside_a_format(live):
    asked = {"model": BASE, "prompt": "x", "max_tokens": 9, "guided_choice": ["yes", "no"]}
    error = live.post("/v1/completions", asked | {"allowed_token_ids": [5]}).error
    assert error["param"] == "allowed_token_ids"
    assert live.post("/v1/completions", asked | {"bad_words": ["yes"], "logit_bias": {TOKENS["n"]: 50}}).status == 200
    dead = live.post("/v1/completions", asked | {"bad_words": ["yes"], "logit_bias": {TOKENS["y"]: 50}})
    assert dead.status == 422 and dead.error["code"] == "constraint_failed" and "bad_words" in dead.error["message"]


WRONG = {
    "presence_penalty": (3, -2.5, "1", True), "frequency_penalty": (3,), "repetition_penalty": (0, -1), "min_p": (-1, 1.5),
    "logit_bias": ({"5": 101}, {"a": 1}, {"-1": 1}, {"05": 1}, {"300": 1}, {"5": None}, [5], {"5": "1"}, {"99999999999": 1}),
    "allowed_token_ids": ([], [300], [-1], ["a"], 5), "bad_words": ([""], "x", [5], ["x" * 300]), "best_of": (0, 129),
    "prompt_logprobs": (-1, 21), "stop_token_ids": ([300],), "priority": ("1", 1.5, True, 1 << 63, -(1 << 63) - 1),
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_name(live, field, value):
    for path, asked in (("completions", {"prompt": "a"}), ("chat/completions", {"messages": [{"role": "user"}]})):
        reply = live.post(f"/v1/{path}", {"model": BASE, "max_tokens": 2, field: value, **asked})
        assert reply.status == 400 and reply.error["param"].startswith(field), reply.data


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
        ({"prompt": ["a"] * 20, "best_of": 100}, "best_of"),
    ],
)
def test_fields_that_do_not_go_together(live, fields, param):
    assert live.post("/v1/completions", {"model": BASE, "prompt": "a", **fields}).error["param"] == param


# What ends a text


def test_a_stop_is_part_of_the_text_where_it_is_asked_for(client, base):
    text = text_of(complete(client, **GREEDY))
    stop = text[4:7]
    whole = text[: text.find(stop) + len(stop)]
    for stops in (stop, [stop, stop[:2] + "never"]):
        ended = complete(client, stop=stops, include_stop_str_in_output=True, **GREEDY)
        assert text_of(ended) == whole and ended.choices[0].finish_reason == "stop"
    chunks = complete(client, stop=stop, include_stop_str_in_output=True, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    id = ids_of(client, **GREEDY)[3]
    shown, hidden = (
        complete(client, stop_token_ids=[id], include_stop_str_in_output=included, logprobs=0, **GREEDY).choices[0]
        for included in (True, False)
    )
    assert shown.finish_reason == hidden.finish_reason == "stop" and shown.logprobs.tokens == hidden.logprobs.tokens
    assert len(shown.text) == len(hidden.text) + 1 and shown.text.startswith(hidden.text)


# Log-probabilities of the prompt


@pytest.mark.parametrize("model", [BASE, *KINDS])
@pytest.mark.parametrize("top", [0, 3])
def test_the_prompts_log_probabilities_are_a_direct_forwards(client, base, folders, model, top):
    ids = base.tokenizer.encode("Question: why?")
    forms = None if model == BASE else load_artifact(folders[model], base.spec).fold(base)
    (logits,) = served_logits(base, [(forms, torch.tensor(ids))])
    rows = logits.log_softmax(-1)
    answer = complete(client, model, [ids], max_tokens=2, temperature=0, prompt_logprobs=top, n=2)
    first, second = (choice.prompt_logprobs for choice in answer.choices)
    assert first == second and len(first) == len(ids) and first[0] is None
    for row, id, entries in zip(rows, ids[1:], first[1:], strict=False):
        best = row.topk(top)
        wanted = {id: row[id].item(), **dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))}
        assert {int(key) for key in entries} == wanted.keys() and next(iter(entries)) == str(id)
        for key, entry in entries.items():
            assert entry["logprob"] == pytest.approx(wanted[int(key)], abs=1e-4)
            rank = (row > row[int(key)]).sum().item() + 1
            assert entry["rank"] == (rank if rank <= top else None)
            assert TOKENS.get(entry["decoded_token"], int(key)) == int(key)


def test_prompt_log_probabilities_beside_echo_and_of_a_chat(client, base):
    echoed = complete(client, max_tokens=1, temperature=0, echo=True, logprobs=1, prompt_logprobs=4).choices[0]
    assert all(len(top) <= 2 for top in echoed.logprobs.top_logprobs[1:])
    own = [next(iter(entries.values()))["logprob"] for entries in echoed.prompt_logprobs[1:]]
    assert own == echoed.logprobs.token_logprobs[1:-1]
    assert {len(entries) for entries in echoed.prompt_logprobs[1:]} <= {4, 5}
    messages = [{"role": "user", "content": "Hi"}]
    chat = client.chat.completions.create(
        model="lora", messages=messages, max_tokens=2, extra_body={"prompt_logprobs": 1}
    )
    assert len(chat.prompt_logprobs) == chat.usage.prompt_tokens
    assert chat.choices[0].message.content is not None and "prompt_logprobs" not in chat.choices[0].model_extra


# Several choices


def test_the_best_of_several_is_the_most_probable_per_token(client):
    asked = {"seed": 5, "temperature": 1.3, "max_tokens": 12, "logprobs": 0, "ignore_eos": False}
    made = complete(client, "lora", n=6, **asked)
    means = {
        choice.text: math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)
        for choice in made.choices
    }
    best = complete(client, "lora", best_of=6, n=2, **asked)
    assert [choice.text for choice in best.choices] == sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.usage.completion_tokens == made.usage.completion_tokens
    hidden = complete(client, "lora", best_of=6, **asked | {"logprobs": None})
    assert hidden.choices[0].text == best.choices[0].text and hidden.choices[0].logprobs is None
    two = complete(client, "lora", [PROMPT, "Other"], best_of=3, n=1, **asked)
    assert [choice.text for choice in two.choices] == [
        complete(client, "lora", prompt, best_of=3, **asked).choices[0].text for prompt in (PROMPT, "Other")
    ]


@pytest.mark.parametrize("fields", [{"n": 8}, {"best_of": 8}, {"best_of": 8, "n": 3, "stop": "never"}])
def test_choices_share_the_prompts_blocks(live, client, fields):
    """Rows of the prompt that are computed: once, and for each further choice what does not fill a block."""
    prompt = [(7 * i + fields.get("n", 1)) % 200 + 2 for i in range(3 * BLOCK_ROWS + 3)]
    runner, rows = live.engine.runner, []
    step = type(runner).step

    def counting(batch, *asked):
        rows.extend(len(run.tokens) for run in batch.runs if run.start < len(prompt))
        return step(runner, batch, *asked)

    ask(live.engine, lambda: vars(runner).update(step=counting))
    try:
        complete(client, prompt=prompt, max_tokens=4, **fields)
    finally:
        ask(live.engine, lambda: vars(runner).pop("step"))
    assert sum(rows) == len(prompt) + 7 * 3


# Streams


@pytest.mark.parametrize("model", ["lora"])
def test_every_event_tells_the_usage_so_far(client, model):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *events, last = complete(client, model, n=2, stream=True, stream_options=options, **GREEDY)
    counts = [event.usage.completion_tokens for event in events]
    assert counts == sorted(counts) and counts[-1] == last.usage.completion_tokens == 80 and not last.choices
    assert {event.usage.prompt_tokens for event in events} == {len(PROMPT)}
    alone = list(complete(client, model, stream=True, stream_options={"continuous_usage_stats": True}, **GREEDY))
    assert all(event.usage and event.choices for event in alone)
    messages = [{"role": "user", "content": "Hi"}]
    first, *_ = client.chat.completions.create(
        model=model, messages=messages, max_tokens=3, stream=True, stream_options=options
    )
    assert first.usage.completion_tokens >= 0 and first.choices[0].delta.role == "assistant"
