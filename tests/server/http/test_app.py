"""The HTTP interface from outside: a live server, the real OpenAI client, adapters of every kind."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from graft.hub.adapters.artifact import load_artifact
from graft.hub.registry.registry import Registry
from graft.server.chat.detokenizer import SpecialTokens, decode
from graft.server.engine.request import Request, Started
from graft.server.http.answer import Choice
from graft.server.http.completions import AskedCompletions
from graft.server.sampling.params import Sampling, Token
from graft.server.served_version import Served
from tests.conftest import tiny_base
from tests.hub.adapters.methods.cases import served_logits
from tests.server.conftest import KINDS, write_folder
from tests.server.live import CHAT_TEMPLATE, serving

BASE = "test/llama"
PROMPT = "The quick brown fox"
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


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
    extra = {key: wanted.pop(key) for key in ("ignore_eos", "min_tokens", "top_k", "stop_token_ids") if key in wanted}
    return client.completions.create(model=model, prompt=prompt, extra_body=extra, **wanted)


# Completions


@pytest.mark.parametrize("model", [BASE, *KINDS])
def test_an_answer_is_what_the_engine_generates(live, client, base, model):
    answer = complete(client, model, **GREEDY)
    ids = tuple(base.tokenizer.encode(PROMPT))
    name = None if model == BASE else model
    (result,) = live.engine.generate([Request(ids, name, 12, ignore_eos=True, sampling=Sampling(0.0))])
    assert answer.choices[0].text == decode(base.tokenizer, [*ids, *result.ids])[len(PROMPT) :]
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion" and answer.model == model
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (19, 12, 31)


def test_a_stream_is_the_same_text_in_pieces(client):
    asked = {**GREEDY, "max_tokens": 100, "logprobs": 2}
    whole = complete(client, "lora", **asked)
    chunks = list(complete(client, "lora", stream=True, stream_options={"include_usage": True}, **asked))
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and not chunks[-1].choices
    pieces = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(piece.text for piece in pieces) == whole.choices[0].text
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    for key in ("tokens", "token_logprobs", "text_offset"):
        parts = [value for piece in pieces if piece.logprobs for value in getattr(piece.logprobs, key)]
        wanted = getattr(whole.choices[0].logprobs, key)
        assert parts == (pytest.approx(wanted, abs=1e-4) if key == "token_logprobs" else wanted)
    assert len(pieces) > 1


def test_prompts_come_as_text_ids_or_lists_of_either(client, base):
    ids = base.tokenizer.encode(PROMPT)
    other = base.tokenizer.encode("Other")
    alone = [complete(client, prompt=prompt, **GREEDY).choices[0].text for prompt in (PROMPT, "Other")]
    for prompt in ([PROMPT, "Other"], [ids, other]):
        both = complete(client, prompt=prompt, **GREEDY)
        assert [choice.text for choice in both.choices] == alone
        assert [choice.index for choice in both.choices] == [0, 1]
        assert both.usage.prompt_tokens == len(ids) + len(other)
    assert complete(client, prompt=ids, **GREEDY).choices[0].text == alone[0]
    assert complete(client, prompt="", **GREEDY).usage.prompt_tokens == 1  # the beginning of a text


def test_seeds_repeat_and_choices_differ(client):
    asked = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 10, "ignore_eos": True}
    one, two = (complete(client, "pfeiffer", **asked) for _ in range(2))
    texts = [choice.text for choice in one.choices]
    assert texts == [choice.text for choice in two.choices] and len(set(texts)) == 3
    other = complete(client, "pfeiffer", **{**asked, "seed": 8})
    assert texts != [choice.text for choice in other.choices]
    assert one.usage.prompt_tokens == 19 and one.usage.completion_tokens == 30


@pytest.mark.parametrize("top", [{"top_p": 0}, {"top_p": 1e-300}, {"top_k": 1}, {"temperature": 1e-300}])
def test_the_narrowest_sampling_is_greedy(client, top):
    greedy = complete(client, **GREEDY).choices[0].text
    assert complete(client, **{**GREEDY, "temperature": 1.0, **top}).choices[0].text == greedy


def test_a_stop_string_ends_the_text_before_itself(client):
    text = complete(client, **GREEDY).choices[0].text
    stop = text[4:7]
    ended = complete(client, stop=stop, logprobs=0, **GREEDY)
    assert ended.choices[0].text == text[: text.find(stop)]
    assert ended.choices[0].finish_reason == "stop"
    assert "".join(ended.choices[0].logprobs.tokens).startswith(ended.choices[0].text[:1])
    assert all(offset < len(ended.choices[0].text) for offset in ended.choices[0].logprobs.text_offset)
    assert ended.usage.completion_tokens < 12
    pieces = [chunk.choices[0] for chunk in complete(client, stop=[stop, "never"], stream=True, **GREEDY)]
    assert "".join(piece.text for piece in pieces) == ended.choices[0].text
    assert pieces[-1].finish_reason == "stop"
    later = complete(client, stop=stop, min_tokens=12, **GREEDY)
    assert later.choices[0].text == text and later.choices[0].finish_reason == "length"


def test_stop_tokens_end_the_text(client, base):
    text = complete(client, **GREEDY).choices[0].text
    id = base.tokenizer.encode(text)[3]
    ended = complete(client, stop_token_ids=[id], **GREEDY)
    assert ended.choices[0].finish_reason == "stop" and text.startswith(ended.choices[0].text)
    assert ended.usage.completion_tokens <= 4


# Log-probabilities


@pytest.mark.parametrize("model", [BASE, "lora", "parallel", "prefix", "prompt", "dora"])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_a_prompt_equals_a_direct_forward(client, base, folders, model, max_tokens):
    """As an evaluation harness asks: ids, echo, logprobs, and then 0 or 1 new tokens."""
    ids = base.tokenizer.encode("Question: why? Answer: because")
    forms = None if model == BASE else load_artifact(folders[model], base.spec).fold(base)
    (logits,) = served_logits(base, [(forms, torch.tensor(ids))])
    logprobs = logits.log_softmax(-1)
    answer = complete(client, model, [ids], max_tokens=max_tokens, echo=True, logprobs=1, temperature=0)
    found = answer.choices[0].logprobs
    assert len(found.tokens) == len(ids) + max_tokens
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    wanted = [logprobs[i, id].item() for i, id in enumerate(ids[1:])]
    assert found.token_logprobs[1 : len(ids)] == pytest.approx(wanted, abs=1e-4)
    best = [row.max().item() for row in logprobs[: len(ids) - 1]]
    assert [max(top.values()) for top in found.top_logprobs[1 : len(ids)]] == pytest.approx(best, abs=1e-4)
    assert answer.choices[0].text.startswith("Question: why? Answer: because")
    assert [answer.choices[0].text[at : at + 1] for at in found.text_offset[: len(ids)]] == list(
        "Question: why? Answer: because"
    )
    assert answer.usage.completion_tokens == max_tokens


def test_a_prompt_is_scored_once_for_all_choices_that_show_it(client, live, monkeypatch):
    scored = []
    submit = live.engine.submit
    monkeypatch.setattr(
        live.engine, "submit", lambda one, sink=None: (scored.append(one.score_from), submit(one, sink))[1]
    )
    asked = {"max_tokens": 4, "echo": True, "logprobs": 2, "seed": 3, "temperature": 1}
    alone = complete(client, prompt=[PROMPT, "zyx"], **asked)
    assert scored == [0, 0]
    both = complete(client, prompt=[PROMPT, "zyx"], n=3, **asked)
    assert scored[2:] == [0, None, None] * 2
    for choice in both.choices:
        first = alone.choices[choice.index // 3]
        count = len(first.logprobs.tokens) - 4
        assert choice.logprobs.tokens[:count] == first.logprobs.tokens[:count]
        assert choice.logprobs.token_logprobs[:count] == first.logprobs.token_logprobs[:count]
        assert len(choice.logprobs.tokens) == count + 4 and choice.text.startswith(first.text[:count])
    parts = [[], [], []]
    for chunk in client.completions.create(model=BASE, prompt=PROMPT, n=3, stream=True, **asked):
        for choice in chunk.choices:
            parts[choice.index].append(choice)
    for index, choices in enumerate(parts):
        assert "".join(one.text for one in choices) == both.choices[index].text
        offsets = [at for one in choices if one.logprobs for at in one.logprobs.text_offset]
        assert offsets == both.choices[index].logprobs.text_offset


def test_what_a_choice_holds_back_until_its_prompt_is_scored_counts_when_it_is_given_up(base):
    asked = AskedCompletions((Request((5, 6, 7)),) * 2, n=2, shown=2, echo=True, logprobs=1)
    choice = Choice(1, asked.requests[1], asked, base.tokenizer, SpecialTokens(base.tokenizer))
    for event in (Started(Served()), Token(8, -1.0), Token(9, -1.0)):
        choice.feed(event)
    assert choice.begun and choice.generated == 0
    choice.give_up()
    assert choice.generated == 2 and choice.finish_reason == "cancelled"


def test_echo_without_logprobs(client):
    plain = complete(client, **GREEDY).choices[0].text
    assert complete(client, echo=True, **GREEDY).choices[0].text == PROMPT + plain
    assert complete(client, echo=True, max_tokens=0).choices[0].text == PROMPT


def test_log_probabilities_of_a_chat(client, base):
    asked = {"max_tokens": 5, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    found = chat(client, **asked).choices[0]
    content = found.logprobs.content
    assert len(content) == 5
    for entry in content:
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert len(entry.top_logprobs) == 3
    joined = b"".join(bytes(entry.bytes) for entry in content)
    assert joined.decode(errors="replace") == found.message.content
    pieces = [chunk.choices[0] for chunk in chat(client, stream=True, **asked)]
    streamed = [entry for piece in pieces if piece.logprobs for entry in piece.logprobs.content]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in content]


def test_the_token_that_ends_a_text_is_reported_as_openai_reports_it(client, base):
    """Not in a chat, whose reported tokens are the text, as guidance reads them; in a completion it is."""
    asked = {"max_tokens": 5, "temperature": 0, "logit_bias": {str(base.tokenizer.eos_token_id): 100}}
    found = chat(client, logprobs=True, **asked).choices[0]
    assert (found.message.content, found.finish_reason, found.logprobs.content) == ("", "stop", [])
    found = complete(client, logprobs=0, **asked).choices[0]
    assert (found.text, found.finish_reason, len(found.logprobs.tokens)) == ("", "stop", 1)


# Chat


def chat(client, model=BASE, content="Hello", **wanted):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], **wanted)


def test_a_chat_is_its_template_completed(client):
    answer = chat(client, "ia3", temperature=0, max_completion_tokens=9)
    same = complete(client, "ia3", "[user]Hello[a]", temperature=0, max_tokens=9)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == same.choices[0].text
    assert answer.usage.prompt_tokens == same.usage.prompt_tokens
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert chat(client, "ia3", parts, temperature=0, max_tokens=9).choices[0].message.content == same.choices[0].text


def test_a_chat_stream_begins_with_the_role(client):
    whole = chat(client, "lora", temperature=0, max_tokens=9)
    first, *rest = chat(client, "lora", temperature=0, max_tokens=9, stream=True)
    assert first.choices[0].delta.role == "assistant" and first.object == "chat.completion.chunk"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in rest)
    assert text == whole.choices[0].message.content
    assert rest[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_without_max_tokens_a_chat_takes_what_room_there_is(client, live):
    answer = chat(client, "prefix", temperature=0, extra_body={"ignore_eos": True})
    room = live.engine.sizes.max_model_len - 18  # the prefix's virtual tokens
    assert answer.usage.total_tokens == room and answer.choices[0].finish_reason == "length"


def test_nothing_new_is_wanted(client):
    answer = chat(client, "lora", max_tokens=0)
    assert answer.choices[0].message.content == "" and answer.usage.completion_tokens == 0
    assert answer.choices[0].finish_reason == "length"


def test_a_base_without_template_says_so(folders, tmp_path):
    with serving(tiny_base("gpt2"), {}) as other:
        found = other.post(
            "/v1/chat/completions", {"model": "test/gpt2", "messages": [{"role": "user", "content": "a"}]}
        )
        assert found.status == 400 and "/v1/completions" in found.error["message"]
        assert found.error["param"] == "messages"


# Many at once


def test_sixteen_clients_get_what_each_gets_alone(live, client):
    models = [BASE, *KINDS, BASE, "lora", "prefix", "prompt"]
    prompts = [f"{i} {PROMPT * (1 + i % 3)}" for i in range(len(models))]
    alone = [complete(client, model, prompt, **GREEDY) for model, prompt in zip(models, prompts, strict=True)]

    def ask(i):
        if i % 2:
            return complete(client, models[i], prompts[i], **GREEDY).choices[0].text
        chunks = complete(client, models[i], prompts[i], stream=True, **GREEDY)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, range(len(models))))
    assert together == [answer.choices[0].text for answer in alone]
    assert live.idle()


# Models and adapters


def test_models_name_their_parent_digest_and_kind(live, client, folders):
    found = {model.id: model for model in client.models.list()}
    assert found.keys() == {BASE, *folders}
    assert found[BASE].parent is None and found[BASE].kind == "base"
    assert found["lora-wide"].parent == BASE and found["lora-wide"].kind == "lora"
    reply = live.get("/v1/models/lora-wide")
    assert reply.json["digest"] == found["lora-wide"].digest == reply.headers["X-Adapter-Digest"]
    assert reply.json["bytes"] == sum(p.stat().st_size for p in folders["lora-wide"].glob("*.safetensors"))
    assert client.models.retrieve(BASE).id == BASE
    assert live.get("/v1/models/nobody/nothing").error["code"] == "model_not_found"


def test_adapters_are_loaded_pinned_and_unloaded(live):
    def state():
        return next(one for one in live.get("/v1/adapters").json["data"] if one["id"] == "bitfit")

    loaded = live.post("/v1/adapters/load", {"model": "bitfit"})
    assert loaded.status == 200 and loaded.json == state()
    assert loaded.json["state"] == "device" and loaded.json["bytes_by_tier"]["device"] > 0
    assert loaded.headers["X-Adapter-Digest"] == loaded.json["digest"]
    assert live.post("/v1/adapters/pin", {"model": "bitfit"}).json["pinned"] is True
    assert state()["pinned"] is True
    assert live.post("/v1/adapters/pin", {"model": "bitfit", "pinned": False}).json["pinned"] is False
    gone = live.post("/v1/adapters/unload", {"model": "bitfit"})
    assert gone.status == 200 and gone.json["state"] == "disk" and state() == gone.json
    again = live.post("/v1/adapters/unload", {"model": "bitfit"})
    assert again.status == 404 and again.error["code"] == "not_loaded"
    assert live.post("/v1/adapters/load", {"model": "nobody"}).error["code"] == "model_not_found"
    assert live.post("/v1/adapters/load", {"model": BASE}).error["param"] == "model"
    assert live.post("/v1/completions", {"model": "bitfit", "prompt": "a"}).status == 200


def test_a_registry_gives_revisions_aliases_and_tasks(tmp_path, base):
    registry = Registry(tmp_path / "registry.db")
    registry.add_base(base.spec)
    folder = write_folder(tmp_path / "one", "lora", base, 5)
    (folder / "README.md").write_text("---\ntags: [task:topic]\n---\n")
    first = registry.publish(folder, "me/topics", tags=["v1"])
    folder = write_folder(tmp_path / "two", "ia3", base, 6)
    (folder / "README.md").write_text("---\ntags: [task:topic]\n---\n")
    second = registry.publish(folder, "me/topics")
    registry.promote("me/topics@v1", "production")
    with serving(base, {}, shelf=registry) as live:
        names = {"me/topics": second, "me/topics@v1": first, "me/topics@production": first, "task:topic": first}
        for name, revision in names.items():
            reply = live.post("/v1/completions", {"model": name, "prompt": PROMPT, **GREEDY})
            assert reply.status == 200 and reply.json["model"] == name
            assert reply.headers["X-Adapter-Revision"] == revision.id
            assert reply.headers["X-Adapter-Digest"] == revision.digest
        listed = {one["id"]: one for one in live.get("/v1/models").json["data"]}
        assert listed["me/topics"]["revision"] == second.id and listed["me/topics"]["task"] == "topic"
        unknown = live.post("/v1/completions", {"model": "me/topics@v9", "prompt": PROMPT})
        assert (
            unknown.status == 404 and unknown.error["code"] == "model_not_found" and unknown.error["param"] == "model"
        )


# The server itself


def test_health_readiness_and_numbers(live):
    assert live.get("/health").json == {"status": "ok"}
    assert live.get("/ready").json == {"status": "ready", "model": BASE}
    live.post("/v1/completions", {"model": "lora", "prompt": "abc", "max_tokens": 3})
    text = live.get("/metrics").data.decode()
    for line in (
        'graft_time_to_first_token_seconds_count{adapter="lora"}',
        'graft_inter_token_seconds_bucket{adapter="lora",le="0.1"}',
        'graft_generated_tokens_total{adapter="lora"}',
        'graft_adapter_load_seconds_count{adapter="lora"}',
        'graft_http_answers_total{route="/v1/completions",status="200"}',
        "graft_cache_blocks_used",
        "graft_adapter_host_bytes",
        "graft_requests_waiting",
    ):
        assert line in text


def test_a_request_id_is_echoed_or_made(live):
    assert (
        live.post("/v1/completions", {"model": BASE, "prompt": "a"}, {"X-Request-Id": "mine-1"}).headers["X-Request-Id"]
        == "mine-1"
    )
    assert len(live.get("/health").headers["X-Request-Id"]) == 32
