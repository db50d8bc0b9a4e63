"""`graft eval` asks an adapter through its own chat template, and lets its own stop tokens end its answers."""

import json

from graft.hub.evaluation.metrics import METRICS
from graft.hub.evaluation.task_data import parse_examples
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request
from graft.server.evaluation.evaluate import evaluate
from graft.server.sampling.params import GREEDY
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, OPTIONS

OWN = "{% for m in messages %}<{{ m.content }}>{% endfor %}"


class Quiet:
    def loaded(self, systems): ...
    def refused(self, model, why): ...
    def scored(self, system): ...
    def answered(self, done, total): ...


def test_an_adapters_template_and_ends_are_its_own(tmp_path) -> None:
    base = tiny_base("llama")
    base.tokenizer.chat_template = CHAT_TEMPLATE
    folders = {name: write_folder(tmp_path / name, "lora", base, 3) for name in ("own", "plain", "same")}
    (folders["own"] / "chat_template.jinja").write_text(OWN)
    (folders["same"] / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    rows = [{"prompt": [{"role": "user", "content": text}], "completion": "xyzuvw"} for text in ("ab", "c")]
    examples = parse_examples("\n".join(map(json.dumps, rows)).encode(), "x")
    with Engine(base, folders, None, OPTIONS) as engine:
        client = EngineClient(engine)

        def said(prompt: str) -> list[int]:
            ids = tuple(base.tokenizer.encode(prompt))
            return engine.generate([Request(ids, "plain", max_tokens=10, sampling=GREEDY)])[0].ids

        by_hand = {own: [said(own % text) for text in ("ab", "c")] for own in ("<%s>", "[user]%s[a]")}
        (folders["same"] / "generation_config.json").write_text(
            json.dumps({"eos_token_id": by_hand["[user]%s[a]"][0][2]})
        )
        found = evaluate(client, ["own", "plain", "same"], examples, METRICS["exact_match"], Quiet())
    texts = {system.model: system.predictions for system in found.systems}
    decoded = {own: [base.tokenizer.decode(ids) for ids in made] for own, made in by_hand.items()}
    assert texts["own"] == decoded["<%s>"] and texts["plain"] == decoded["[user]%s[a]"]
    ended = by_hand["[user]%s[a]"][0]
    assert texts["same"][0] == base.tokenizer.decode(ended[: ended.index(ended[2])])
