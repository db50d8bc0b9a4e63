"""The demo's stages, one function each: what it runs, and what it says of the outcome.

A stage that works on several adapters goes on past one that is refused, and returns what it has to say of it.
"""

import json
import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graft.hub.demo.data import DemoTask, write_tasks
from graft.hub.demo.notebook import Notebook
from graft.hub.demo.pace import duration_words
from graft.hub.demo.running import CommandRunner
from graft.hub.demo.servers import ModelAnswer, ask, run_server
from graft.hub.demo.story import BASE, QUESTIONS, DemoAdapter, Story
from graft.hub.demo.teller import Teller
from graft.hub.errors import GraftError

BATCH, EPOCHS = 4, 1.0
_CHECKPOINT_STEPS = 4
_TELL_EVERY_S = 60.0
Refused = dict[str, str]  # why, by the adapter's name in the registry


@dataclass(frozen=True)
class Demo:
    """What every stage works with."""

    story: Story
    notes: Notebook
    runner: CommandRunner
    teller: Teller
    seed: int
    dtype: str | None

    @property
    def base(self) -> str:
        return str(BASE.folder)

    @property
    def registry(self) -> tuple[str, str]:
        return "--registry", str(self.notes.registry)

    @property
    def as_dtype(self) -> tuple[str, ...]:
        return ("--dtype", self.dtype) if self.dtype else ()

    def url(self, port: int, path: str = "") -> str:
        return f"http://127.0.0.1:{port}{path}"


def fetch(demo: Demo) -> None:
    """Base and data, downloaded once; the base is noted in the registry, which checks adapters against it."""
    demo.runner.run("base", "import", BASE.name, *demo.registry, "--json", watched=True)
    write_tasks(demo.notes.folder / "data", demo.story.sizes)
    demo.teller.say(f"{BASE.id}, {BASE.licence}, in {demo.base}")


def register_tasks(demo: Demo) -> None:
    """Each with its metric and evaluation set. The list of them shows how long a command takes that loads no torch."""
    started = time.monotonic()
    known = {task["slug"] for task in demo.runner.run("task", "list", *demo.registry, "--json").answer}
    demo.teller.pace = demo.teller.pace.learn(light_s=time.monotonic() - started)
    for task in demo.story.tasks:
        if task.slug not in known:
            words = ("--metric", task.metric, "--data", str(demo.notes.data(task.slug, "test")))
            demo.runner.run("task", "add", task.slug, *words, "--description", task.description, *demo.registry)
    demo.teller.say(", ".join(f"{task.slug} ({task.metric})" for task in demo.story.tasks))


def letters(demo: Demo, entry: DemoAdapter, part: str) -> int:
    """Of the entry's data, which cost in proportion."""
    return demo.notes.data(entry.task.slug, part).stat().st_size


def train(demo: Demo) -> Refused:
    """The adapters that are not there yet, as one plan on one frozen base, from where an earlier run was stopped."""
    missing = [entry for entry in demo.story.entries if not demo.notes.is_trained(entry)]
    if not missing:
        demo.teller.say("all are trained already")
        return {}
    plan = demo.notes.folder / "plan.toml"
    plan.write_text("\n".join(_plan_lines(demo, missing)))
    begun = any(place.exists() for entry in missing for place in demo.notes.places(entry))
    said = _TimeLeft(demo.teller)
    started = time.monotonic()
    done = demo.runner.try_("train", "--plan", str(plan), *(["--resume"] if begun else []), watched=True, hears=said)
    failed = [entry for entry in missing if not demo.notes.is_trained(entry)]
    if len(failed) == len(missing):
        raise GraftError(f"`graft train` failed: {done.reason} What was finished before it is kept.")
    _learn_pace(demo, missing, time.monotonic() - started)
    return {entry.repo: f"not trained: {done.reason}" for entry in failed}


class _TimeLeft:
    """Where no terminal shows the bars: says how long the training takes as soon as its own lines tell, then once a minute."""

    def __init__(self, teller: Teller):
        self._teller = teller
        self._told = -math.inf

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S and (left := re.search(r"(\d+) s left$", line)):
            self._told = now
            self._teller.say(f"training takes about {duration_words(float(left[1]))} more")


def _learn_pace(demo: Demo, entries: list[DemoAdapter], wall_s: float) -> None:
    """What training has shown, for what is left, and for who reads it. What is neither training nor saving is starting."""
    made = [entry for entry in entries if demo.notes.is_trained(entry)]
    facts = [json.loads((demo.notes.adapter(entry) / "graft.json").read_text()) for entry in made]
    seconds, tokens = max(fact["seconds"] for fact in facts), sum(fact["tokens"] for fact in facts)
    speed = EPOCHS * sum(letters(demo, entry, "train") for entry in made) / seconds
    demo.teller.pace = demo.teller.pace.learn(letters_per_s=speed, heavy_s=wall_s - seconds - _saving_s(demo, made))
    dtype = facts[0]["dtype"]
    demo.teller.say(
        f"{len(made)} adapters, {tokens:,} tokens in {seconds:.0f} s: {tokens / seconds:,.0f} a second, {dtype}"
    )


def _saving_s(demo: Demo, made: list[DemoAdapter]) -> float:
    """How long they took to save, with their probes: one after another, so as long as lies between them, and one more."""
    saved = [(demo.notes.adapter(entry) / "graft.json").stat().st_mtime for entry in made]
    return (max(saved) - min(saved)) * len(saved) / max(1, len(saved) - 1)


def _plan_lines(demo: Demo, entries: list[DemoAdapter]) -> Iterator[str]:
    yield f"base = {json.dumps(demo.base)}"
    yield f"checkpoint_every = {_CHECKPOINT_STEPS}"
    if demo.dtype:
        yield f"dtype = {json.dumps(demo.dtype)}"
    yield f"\n[defaults]\nepochs = {EPOCHS}\nbatch_size = {BATCH}\nseed = {demo.seed}"
    for entry in entries:
        yield "\n[[adapter]]"
        for key, value in {
            "name": entry.name,
            "method": entry.method,
            "task": entry.task.slug,
            "data": str(demo.notes.data(entry.task.slug, "train")),
            "out": str(demo.notes.adapter(entry)),
        }.items():
            yield f"{key} = {json.dumps(value)}"
        yield f"learning_rate = {entry.learning_rate}"
        yield f"set = {{ {entry.settings} }}"


def publish(demo: Demo, again: list[DemoAdapter]) -> Refused:
    """Every trained adapter that is not in the registry, and those that were trained `again`, as a new version."""
    there = {row["name"] for row in demo.runner.run("search", *demo.registry, "--json").answer}
    refused, sent = {}, 0
    for entry in filter(demo.notes.is_trained, demo.story.entries):
        if entry.repo in there and entry not in again:
            continue
        versions = 1 + (_versions(demo, entry) if entry.repo in there else 0)
        folder = str(demo.notes.adapter(entry))
        done = demo.runner.try_("publish", folder, entry.repo, "--tag", f"v{versions}", *demo.registry)
        if done.code:
            refused[entry.repo] = f"not published: {done.reason}"
        sent += not done.code
    demo.teller.say(f"{sent} published, {len(there)} were there" if there else f"{sent} published")
    return refused


def _versions(demo: Demo, entry: DemoAdapter) -> int:
    return len(demo.runner.run("history", entry.repo, *demo.registry, "--json").answer["revisions"])


def search(demo: Demo) -> None:
    """By task: what anybody would do who looks for an adapter."""
    hits = demo.runner.run("search", "--task", demo.story.main.slug, *demo.registry, "--json").answer
    rows = [(row["name"], row["method"], f"{row['parameters'] or 0:,}") for row in hits]
    demo.teller.table(f"{len(rows)} adapters of {demo.story.main.slug}", ("adapter", "method", "parameters"), rows)


def serve_words(demo: Demo, port: int) -> tuple[str, ...]:
    return ("serve", "--base", demo.base, *demo.registry, "--port", str(port), *demo.as_dtype)


def ask_all(demo: Demo, port: int, refused: Refused) -> list[ModelAnswer]:
    """Every adapter and the bare base answer at once: one mixed batch on the server."""
    entries = [entry for entry in demo.story.entries if entry.repo not in refused]
    asked = [(entry.task, entry.repo) for entry in entries] + [(task, BASE.id) for task in demo.story.tasks]
    log = demo.notes.folder / "serve.log"
    with (
        run_server(demo.runner, serve_words(demo, port), demo.url(port, "/ready"), log),
        ThreadPoolExecutor(len(asked)) as pool,
    ):
        answers = list(pool.map(lambda pair: ask(port, *pair), asked))
    for task in demo.story.tasks:
        rows = [(a.model, "(refused)" if a.refused else a.text) for a in answers if a.task == task.slug]
        demo.teller.table(QUESTIONS[task].replace("\n", "  "), ("model", "answer"), rows)
    return answers


def evaluate(demo: Demo, task: DemoTask) -> tuple[list[dict[str, Any]], Refused]:
    """Scores of every stored adapter of the task and of the bare base, from one mixed run."""
    words = ("--task", task.slug, "--base", demo.base, "--adapters", "all", *demo.as_dtype, *demo.registry)
    done = demo.runner.try_("eval", *words, "--json", watched=True)
    board = done.answer
    if not board:
        raise GraftError(f"`graft eval` failed: {done.reason} What was finished before it is kept.")
    rows = []
    for row in board:
        p = row["extra"].get("p_vs_base")
        interval = f"{row['low']:.3f} .. {row['high']:.3f}"
        rows.append((row["name"] or "(bare base)", f"{row['value']:.3f}", interval, "" if p is None else f"{p:.2g}"))
    title = f"{task.slug}: {task.metric} on {board[0]['n']} examples"
    demo.teller.table(title, ("adapter", task.metric, "95 % interval", "p against the base"), rows)
    scored = {row["name"] for row in board}
    published = [entry for entry in demo.story.entries if entry.task is task and demo.notes.is_trained(entry)]
    return board, {e.repo: f"not scored: {done.reason}" for e in published if e.repo not in scored}


def promote(demo: Demo, board: list[dict[str, Any]], refused: Refused) -> dict[str, Any]:
    """The best adapter of the main task goes into production, with the reason."""
    sound = [row for row in board if row["name"] and row["name"] not in refused]
    if not sound:
        raise GraftError(f"No adapter of {demo.story.main.slug} was scored, so none is promoted.")
    best = max(sound, key=lambda row: row["value"])
    why = f"best {best['metric']} on {demo.story.main.slug}: {best['value']:.3f}"
    demo.runner.run("promote", f"{best['name']}@{best['revision']}", "production", "--why", why, *demo.registry)
    demo.teller.say(f"{best['name']} -> production ({why})")
    return {"name": best["name"], "revision": best["revision"], "alias": "production", "value": best["value"]}


def write_report(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2))
