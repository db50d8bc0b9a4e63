"""Calls of tools: a LoRA trained on a task of ours beside the bare base, both free to call or not.

    python -m benchmarks.tables.tools --base QWEN [--rounds 3]

One round is one seed: a LoRA of all linears and the output is trained by `graft train`'s own defaults, served, and asked 200
held-out requests with all tools offered, `tool_choice` auto, greedy, nothing forced. The bare base, which may not know how calls
are marked, is asked a second time with `tool_choice` required and no parallel calls, which holds it to one. A call is right where
it is the only one, of the right function, with the right arguments. p: McNemar's exact test against the bare base on the same
requests, free and held. Writes results/tools.json and results/tools.md. Nothing is timed.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask

from benchmarks.lib import harness, report
from benchmarks.lib.tool_task import TOOLS, Request, requests
from graft.hub.adapters.methods.target_modules import ALL_LINEAR, spell_out
from graft.hub.base.model import Base, load_base
from graft.hub.chat.conversation import BaseTemplate, Conversation
from graft.hub.evaluation.metrics import mcnemar
from graft.server.chat.tool_formats import FORMATS, find_format
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.http.app import create_app
from graft.trainer import AdapterPlan, RunConfig, TrainConfig, train

BARE, HELD, LORA = "bare base", "bare base, held to one call", "graft LoRA"
FREE: dict[str, Any] = {"tool_choice": "auto"}
CHOICES = {BARE: FREE, HELD: {"tool_choice": "required", "parallel_tool_calls": False}}
RECIPE = ("steps", "batch_size", "examples", "held_out", "dtype")
AT_ONCE, NEW_TOKENS = 16, 96
# For bases whose own template has no place for tools: ChatML with calls as Hermes writes them.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\nCall one so: "
    '<tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>\n{% endif %}{% for message in messages %}'
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    options = arguments()
    samples = harness.earlier(options, "tools")
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    if find_format(BaseTemplate(base.tokenizer).text(with_tools=True)) is not FORMATS["hermes"]:
        base.tokenizer.chat_template = TEMPLATE
    held_out = requests(options.held_out, 0, held_out=True)
    for bare, choice in CHOICES.items():
        if bare in samples:
            continue
        with harness.held(options.lock), served(base, {}) as app:
            samples[bare] = [{"round": 0, **asked(app, base.spec.id or "base", held_out, choice)}]
        harness.say(f"{bare:28} {samples[bare][0]['score']:.3f}")
    publish(options, samples)
    for seed in range(options.rounds):
        if any(sample["round"] == seed for sample in samples.get(LORA, [])):
            continue
        with harness.held(options.lock), tempfile.TemporaryDirectory() as folder:
            out = trained(base, seed, Path(folder), options)
            with served(base, {"tools": out}) as app:
                sample = {"round": seed, "commit": harness.commit(), **asked(app, "tools", held_out, FREE)}
        samples.setdefault(LORA, []).append(sample)
        harness.say(f"seed {seed}  {LORA:28} {sample['score']:.3f}")
        publish(options, samples)
    print((options.out / "tools.md").read_text())


@contextmanager
def served(base: Base, adapters: dict[str, Path]) -> Iterator[Flask]:
    with Engine(base, adapters, None, Options(max_running=AT_ONCE, runner="auto")) as engine:
        yield create_app(EngineClient(engine), base_name=base.spec.id or "base")


def trained(base: Base, seed: int, folder: Path, options: argparse.Namespace) -> Path:
    """The LoRA's folder. Raises SystemExit where the training fails."""
    data = folder / "train.jsonl"
    data.write_text(
        "".join(json.dumps(row(base, one)) + "\n" for one in requests(options.examples, seed, held_out=False))
    )
    recipe = TrainConfig(steps=options.steps, batch_size=options.batch_size, seed=seed)
    # This base never learned to say <tool_call>: its row of the output is that of other tokens, and only the output's own LoRA parts them.
    targets = ",".join([*spell_out(ALL_LINEAR, base.spec), "lm_head"])
    plan = AdapterPlan(method="lora", data=data, out=folder / "lora", recipe=recipe, options={"targets": targets})
    (outcome,) = train(base, [plan], RunConfig(dtype=options.dtype))
    if outcome.folder is None:
        raise SystemExit(f"error: seed {seed}: {outcome.stopped}")
    return outcome.folder


def row(base: Base, one: Request) -> dict[str, str]:
    """A request as the server will make a prompt of it, and its call as the base writes calls."""
    turns = [{"role": "user", "content": one.text}]
    call = json.dumps({"name": one.name, "arguments": one.arguments}, ensure_ascii=False)
    prompt = BaseTemplate(base.tokenizer).render(Conversation(turns, TOOLS))
    return {"prompt": prompt, "completion": f"<tool_call>\n{call}\n</tool_call>"}


def asked(app: Flask, model: str, held_out: list[Request], choice: dict[str, Any]) -> dict[str, Any]:
    """How often the right function was called, and called with the right arguments."""

    def ask(one: Request) -> tuple[float, float]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": one.text}],
            "tools": TOOLS,
        } | choice
        reply = app.test_client().post("/v1/chat/completions", json=body | {"temperature": 0, "max_tokens": NEW_TOKENS})
        if reply.status_code != 200:
            raise SystemExit(f"error: {reply.text}")
        return judged(reply.json["choices"][0]["message"].get("tool_calls") or [], one)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        both = list(pool.map(ask, held_out))
    functions, values = [one for one, _ in both], [one for _, one in both]
    return {"score": statistics.fmean(values), "functions": statistics.fmean(functions), "values": values}


def judged(calls: list[dict[str, Any]], one: Request) -> tuple[float, float]:
    """(right function, right function and arguments), 0 or 1 each."""
    if len(calls) != 1 or calls[0]["function"]["name"] != one.name:
        return 0.0, 0.0
    try:
        return 1.0, float(json.loads(calls[0]["function"]["arguments"]) == one.arguments)
    except ValueError:
        return 1.0, 0.0


def publish(options: argparse.Namespace, samples: harness.Samples) -> None:
    facts = {key: getattr(options, key) for key in RECIPE} | {"base": Path(options.base).name}
    result = report.envelope("tools", options, recipe=facts, samples=samples)
    report.write(options.out, result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """Made from the JSON alone."""
    recipe, samples = result["recipe"], result["samples"]
    bare = {name: samples[name][0] for name in CHOICES}
    lines = [[name, f"{one['functions']:.3f}", f"{one['score']:.3f}", "", ""] for name, one in bare.items()]
    for sample in samples.get(LORA, []):
        p = [f"{mcnemar(sample['values'], one['values']):.2g}" for one in bare.values()]
        lines.append([f"{LORA}, seed {sample['round']}", f"{sample['functions']:.3f}", f"{sample['score']:.3f}", *p])
    return "\n".join(
        [
            report.heading(result, "Calls of tools, unforced"),
            f"{recipe['base']} in {recipe['dtype']}; {recipe['examples']} training requests, {recipe['steps']} steps of "
            f"{recipe['batch_size']}, {recipe['held_out']} held-out requests whose values no training request holds; all "
            f"{len(TOOLS)} tools offered, `tool_choice` auto, greedy.",
            "",
            report.table(["", "right function", "right call", "p, base free", "p, base held"], lines),
            "p: McNemar's exact test against the bare base, on right calls of the same requests. Held: `tool_choice` required, one call, for a "
            "base that never learned how calls are marked makes none by itself.",
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--examples", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    return harness.parsed(parser)


if __name__ == "__main__":
    main()
