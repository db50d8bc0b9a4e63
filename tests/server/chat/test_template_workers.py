"""A stranger's chat template is rendered as transformers would, and can neither hang nor exhaust the server, nor read it."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from graft.hub.chat.conversation import BaseTemplate, Conversation, TemplateRefusalError
from graft.server.chat import template_workers
from graft.server.chat.chat_templates import ForeignTemplate
from graft.server.chat.template_workers import TemplateWorkers
from tests.conftest import tiny_tokenizer

HI = Conversation([{"role": "user", "content": "Hi é"}])
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}
TALK = Conversation(
    [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a  "},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "Hm"},
        {"role": "tool", "content": "4"},
    ],
    [{"type": "function", "function": {"name": "f"}}],
    {"mood": {"deep": [1, None, True]}},
)
PLAIN = (
    "{{ bos_token }}{%- for m in messages %}\n[{{ m.role }}]{{ m.content | trim }}{{ m.reasoning_content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{{ tools | tojson if tools }}{{ mood.deep if mood }}{% if add_generation_prompt %}[a]{% endif %}"
)


@pytest.fixture(scope="module")
def workers() -> TemplateWorkers:
    return TemplateWorkers(3)


def foreign(text: str, workers: TemplateWorkers) -> ForeignTemplate:
    return ForeignTemplate(text, "The adapter's chat template", tiny_tokenizer().special_tokens_map, workers)


def test_it_renders_as_the_bases_own_does(workers) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    begun = Conversation([*HI.turns, {"role": "assistant", "content": "It i"}], opens_reply=False, continues=True)
    for conversation in (HI, TALK, begun, Conversation(HI.turns, opens_reply=False)):
        assert foreign(PLAIN, workers).render(conversation) == BaseTemplate(tokenizer).render(conversation)


def test_tools_come_under_the_name_that_the_template_has_for_them(workers) -> None:
    text = "{% if xml_tools %}{{ xml_tools | tojson }}{% endif %}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = text
    assert foreign(text, workers).render(TALK) == BaseTemplate(tokenizer).render(TALK) != ""


def test_what_ends_the_server_does_not_end_a_rendering(workers) -> None:
    """systemd sends SIGTERM to all processes; the server's requests under way may yet need theirs."""
    template = foreign("{{ messages[0].content }}!", workers)
    assert template.render(HI) == "Hi é!"
    [process] = [place.process._process for text, place in workers._places.items() if text.endswith("!")]
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(process.pid, number)
    time.sleep(0.2)
    assert template.render(HI) == "Hi é!" and process.poll() is None


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "grows": "{% set n = namespace(s='x' * 4096) %}{% for a in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "repeats": "{{ 'x' * 2000000000 }}",
    "pads": "{{ '%02000000000d' % 1 }}",
    "centers": "{{ 'x' | center(2000000000) }}",
    "recurses": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "counts": "{{ 9 ** 999999999 }}",
    "says too much": "{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "reaches out": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "reaches globals": "{{ raise_exception.__globals__.os }}",
    "is broken": "{% for %}",
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_in_time_and_the_others_go_on(workers, template) -> None:
    foreign(PLAIN, workers).render(HI)
    began = time.monotonic()
    with pytest.raises(TemplateRefusalError, match=r"The adapter's chat template (refuses|can't be used for)"):
        foreign(template, workers).render(HI)
    assert time.monotonic() - began < 2 * template_workers.RENDER_S  # a process is begun within it, on whatever machine
    assert foreign(PLAIN, workers).render(HI).endswith("[a]")


def test_the_templates_own_words_are_told(workers) -> None:
    with pytest.raises(TemplateRefusalError, match="refuses these messages: no system turn here"):
        foreign("{{ raise_exception('no system turn here') }}", workers).render(HI)


def test_one_that_hangs_delays_no_other(workers) -> None:
    foreign(PLAIN, workers).render(HI)
    errors: list[Exception] = []

    def hang() -> None:
        try:
            foreign(HOSTILE["loops"], workers).render(HI)
        except TemplateRefusalError as error:
            errors.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    time.sleep(0.1)
    began = time.monotonic()
    for _ in range(20):
        foreign(PLAIN, workers).render(HI)
    taken = time.monotonic() - began
    thread.join()
    assert taken < 2 and len(errors) == 1


def test_processes_are_bounded_and_get_no_secrets(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    own = TemplateWorkers(2)
    for text in ("a", "b", "c", "a", "c"):
        assert foreign(text, own).render(HI) == text
    processes = [place.process._process for place in own._places.values()]
    assert len(processes) == 2 and list(own._places) == ["a", "c"]
    pids = {process.pid for process in processes}
    began = time.monotonic()
    for i in range(20):  # a process goes over to the next template
        assert foreign(f"{{{{ {i} }}}}", own).render(HI) == str(i)
    assert time.monotonic() - began < 5
    processes = [place.process._process for place in own._places.values()]
    assert {process.pid for process in processes} == pids
    own_nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert all(os.getpriority(os.PRIO_PROCESS, pid) == min(19, own_nice + 10) for pid in pids)  # behind the engine
    if Path("/proc").is_dir():
        environment = Path(f"/proc/{processes[0].pid}/environ").read_text()
        assert "hf_secret" not in environment and "HF_HUB_OFFLINE" in environment
    del own
    assert all(process.poll() is not None for process in processes)
