"""K12: an adapter's own chat template, stop tokens and defaults are used where it brings them, unless a request says otherwise.

Report: https://github.com/kubeai-project/kubeai/issues/347 (a base without a chat template, an adapter's folder with one).
"""

import json
import threading
import time
from contextlib import contextmanager

import pytest

from graft.server.adapters.names import AdapterNames
from graft.server.engine.request import Request
from graft.server.sampling.params import GREEDY
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import Reply, serving

OWN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
HI = [{"role": "user", "content": "Hi"}]
GENERATION = {"max_new_tokens": 7, "temperature": 0.0, "eos_token_id": [1], "top_p": 2.0}


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """A base without a chat template; adapters with words and without."""
    base, folder = tiny_base("llama"), tmp_path_factory.mktemp("words")
    folders = {name: write_folder(folder / name, "lora", base, 3) for name in ("own", "plain", "hostile", "stopping")}
    (folders["own"] / "chat_template.jinja").write_text(OWN)
    (folders["own"] / "generation_config.json").write_text(json.dumps(GENERATION))
    (folders["hostile"] / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    with serving(base, folders) as running:
        prompt = tuple(base.tokenizer.encode("abc"))
        (first,) = running.engine.generate([Request(prompt, "plain", max_tokens=1, sampling=GREEDY)])[0].ids
        (folders["stopping"] / "generation_config.json").write_text(json.dumps({"eos_token_id": [4000, first]}))
        yield running


def chat(live, model="own", **more):
    return live.post("/v1/chat/completions", {"model": model, "messages": HI, "max_tokens": 3, **more})


def complete(live, model, **more):
    return live.post("/v1/completions", {"model": model, "prompt": "abc", **more}).json


def test_a_chat_goes_through_the_template_that_the_adapter_brings(live) -> None:
    reply = chat(live)
    assert reply.status == 200 and reply.json["usage"]["prompt_tokens"] == len("<user>Hi<reply>")
    for model in ("plain", "test/llama"):
        error = chat(live, model).error
        assert error["param"] == "messages" and f"{model} has no chat template" in error["message"]
    by_hand = complete(live, "own", prompt="<user>Hi<reply>", max_tokens=3)
    assert reply.json["choices"][0]["message"]["content"] == by_hand["choices"][0]["text"]  # drawn greedily, too


def test_a_request_may_bring_its_own(live) -> None:
    for model in ("own", "plain", "test/llama"):
        assert chat(live, model, chat_template="{{ messages[0].content }}").json["usage"]["prompt_tokens"] == 2
    error = chat(live, chat_template="{{ raise_exception('not so') }}").error
    assert (
        error["param"] == "messages"
        and "The request's chat template refuses these messages: not so" in error["message"]
    )


def test_a_text_far_too_long_is_refused_unread(live, monkeypatch) -> None:
    """An adapter's template made 8 million characters of "Hi": tokenizing them took 13 s and 3 GB."""
    unread = live.engine.base.tokenizer
    monkeypatch.setattr(unread, "encode", None)
    template = "{{ 'x' * 2000000 }}"
    for reply, param in (
        (chat(live, chat_template=template), "messages"),
        (live.post("/v1/completions", {"model": "plain", "prompt": "x" * 2000000}), "prompt"),
    ):
        assert (
            reply.status == 400 and reply.error["code"] == "context_length_exceeded" and reply.error["param"] == param
        )
        assert "256 tokens; the prompt is too long: it has 2000000 characters" in reply.error["message"]


def test_defaults_hold_unless_the_request_says_otherwise(live) -> None:
    greedy = complete(live, "own", ignore_eos=True)
    assert greedy["usage"]["completion_tokens"] == 7  # max_new_tokens, not OpenAI's 16
    assert {complete(live, "own", ignore_eos=True)["choices"][0]["text"] for _ in range(3)} == {
        greedy["choices"][0]["text"]
    }
    drawn = {complete(live, "own", temperature=3, ignore_eos=True)["choices"][0]["text"] for _ in range(4)}
    assert len(drawn) > 1
    assert complete(live, "own", max_tokens=2, ignore_eos=True)["usage"]["completion_tokens"] == 2
    assert complete(live, "plain", ignore_eos=True)["usage"]["completion_tokens"] == 16
    assert (
        complete(live, "own", prompt="x" * 252, ignore_eos=True)["usage"]["completion_tokens"] == 4
    )  # what room there is


def test_its_stop_tokens_end_answers(live) -> None:
    ended = complete(live, "stopping", temperature=0)
    assert ended["choices"][0]["finish_reason"] == "stop" and ended["usage"]["completion_tokens"] == 1
    assert complete(live, "stopping", temperature=0, ignore_eos=True)["choices"][0]["finish_reason"] == "length"


def test_a_hostile_template_costs_its_own_requests_an_error(live) -> None:
    error = chat(live, "hostile").error
    assert error["param"] == "messages" and "can't be used for these messages" in error["message"]
    assert complete(live, "hostile", max_tokens=2)["usage"]["completion_tokens"] == 2  # needs no template
    assert chat(live).status == 200


def test_models_tell_what_an_adapter_brings(live) -> None:
    words = live.get("/v1/models/own").json["words"]
    assert words["chat_template"]["characters"] == len(OWN) and words["stop_token_ids"] == [1]
    assert words["generation"] == {"max_new_tokens": 7, "temperature": 0.0}
    assert words["left_aside"] == ["generation_config.json: top_p is no number from 0 to 1"]
    assert live.get("/v1/models/plain").json["words"]["chat_template"] is None
    assert {one["id"]: one["words"] for one in live.get("/v1/adapters").json["data"]}["own"] == words


def test_an_unknown_model_and_a_broken_one_are_told_as_ever(live) -> None:
    reply = chat(live, "nobody/nothing")
    assert reply.status == 404 and reply.error["code"] == "model_not_found" and reply.error["param"] == "model"


def test_who_waits_for_an_adapters_words_is_told_when_the_server_ends(tmp_path, monkeypatch) -> None:
    """The files come from elsewhere, which hangs: nothing else would ever answer."""
    base, release = tiny_base("llama"), threading.Event()
    folder = write_folder(tmp_path / "slow", "lora", base)

    @contextmanager
    def hanging(self, location):
        release.wait(30)
        yield location.folder

    monkeypatch.setattr(AdapterNames, "fetch", hanging)
    with serving(base, {"slow": folder}) as live:
        replies: list[Reply] = []
        thread = threading.Thread(
            target=lambda: replies.append(live.post("/v1/completions", {"model": "slow", "prompt": "a"}))
        )
        thread.start()
        time.sleep(0.3)
        assert not replies
        live.engine.close()
        thread.join(10)
        release.set()
    assert [(reply.status, reply.error["code"]) for reply in replies] == [(503, "closed")]
