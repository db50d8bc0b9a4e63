"""`graft demo`: the whole story on real input, told with the same commands a user types.

Base and data are fetched, adapters of several kinds are trained on three tasks, published, found by task,
served in one mixed batch beside the bare base, evaluated, and the best is promoted. Every step is a `graft`
command or an HTTP request; this file only orders them. A rerun reuses what is there.
"""

import json
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from graft.hub import demo_data
from graft.hub.demo_data import BASE_ID, HEADLINES, SENTIMENT, TASKS, TOPICS, Task
from graft.hub.errors import GraftError

NAMESPACE = "demo"


@dataclass(frozen=True)
class Entry:
    """One adapter of the demo: its name says method and task."""

    method: str
    task: Task
    epochs: float
    settings: str = ""  # inline TOML of the method's options
    learning_rate: float | None = None  # None: the method's own

    @property
    def name(self) -> str:
        return f"{self.task.slug}-{self.method}"


ENTRIES = (
    Entry("lora", TOPICS, 1.5),
    Entry("series", TOPICS, 1.5),
    Entry("parallel", TOPICS, 1.5),
    Entry("prompt", TOPICS, 1.5, 'init = "labels"'),
    Entry("prefix", TOPICS, 1.5),
    Entry("ptuning", TOPICS, 1.5),
    Entry("lora", SENTIMENT, 1, learning_rate=2e-4),  # the base knows much of this task: take small steps
    Entry("bitfit", SENTIMENT, 1),
    Entry("lora", HEADLINES, 1.5),
)
# What the mixed batch asks, a prompt a task, none of it in the training data.
QUESTIONS = {
    TOPICS: "Article: Chipmaker unveils a faster phone processor. The company said its new chip doubles battery life "
    "and runs neural networks on the device.\nTopic:",
    SENTIMENT: "Review: A warm, funny film with a wonderful cast.\nSentiment:",
    HEADLINES: "Article: The central bank has cut interest rates for the first time in two years, citing weak growth "
    "and falling inflation. Analysts expect two more cuts before the summer.\nHeadline:",
}
ANSWER_TOKENS = {TOPICS: 2, SENTIMENT: 2, HEADLINES: 14}

console = Console()


@click.command()
@click.option("--port", default=8000, show_default=True, help="Of the inference server; the hub takes the next one.")
@click.option("--keep-serving", is_flag=True, help="Leave hub and server up until Ctrl-C.")
@click.option(
    "--folder", default="demo", show_default=True, type=click.Path(path_type=Path), help="Where all of it goes."
)
def demo(port: int, keep_serving: bool, folder: Path) -> None:
    """Train, publish, browse, serve mixed, evaluate and promote: the whole story on a real model."""
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    registry = ["--registry", str(folder / "registry.db")]
    base = folder / "base"
    fetch(folder, base, registry)
    register_tasks(folder, registry)
    train(folder, base)
    publish(folder, registry)
    graft("search", "--task", TOPICS.slug, *registry)
    with serving(["serve", "--base", str(base), *registry, "--port", str(port)], port, "/ready"):
        answers = ask_all(port)
        show_answers(answers)
        boards = {task: evaluate(task, base, registry) for task in TASKS}
        promoted = promote(boards[TOPICS], registry)
        report = summary(boards, answers, promoted, time.monotonic() - started)
        Path("demo.json").write_text(json.dumps(report, indent=2))
        graft("history", promoted["name"], *registry)
        say_where(port, keep_serving, folder)
        if keep_serving:
            with serving(["hub", "serve", *registry, "--port", str(port + 1)], port + 1, "/"):
                wait_for_end()


def fetch(folder: Path, base: Path, registry: list[str]) -> None:
    """Base and data, downloaded once."""
    heading("Base and data")
    cache = folder / "cache"
    demo_data.fetch_all(cache, console.print)
    demo_data.write_tasks(cache, folder / "data")
    if not base.exists():
        source = demo_data.model_file(demo_data.fetch(demo_data.MODEL, cache), cache)
        graft("base", "import", str(source), str(base), "--id", BASE_ID, *registry)


def register_tasks(folder: Path, registry: list[str]) -> None:
    heading("Tasks: a metric and an evaluation set each")
    known = {task["slug"] for task in graft_json("task", "list", *registry)} if Path(registry[1]).exists() else set()
    for task in TASKS:
        if task.slug not in known:
            data = str(folder / "data" / f"{task.slug}.test.jsonl")
            graft(
                "task",
                "add",
                task.slug,
                "--metric",
                task.metric,
                "--data",
                data,
                "--description",
                task.description,
                *registry,
            )


def train(folder: Path, base: Path) -> None:
    """The adapters that are not there yet, as one plan on one frozen base."""
    missing = [entry for entry in ENTRIES if not (folder / "adapters" / entry.name / "graft.json").exists()]
    if not missing:
        console.print("All adapters are trained; reusing them.")
        return
    heading(f"Training {len(missing)} adapters on one frozen base")
    plan = folder / "plan.toml"
    plan.write_text("\n".join(plan_lines(folder, base, missing)))
    graft("train", "--plan", str(plan), "--resume")


def plan_lines(folder: Path, base: Path, entries: list[Entry]) -> Iterator[str]:
    yield f"base = {json.dumps(str(base))}"
    for entry in entries:
        yield "\n[[adapter]]"
        for key, value in {
            "name": entry.name,
            "method": entry.method,
            "task": entry.task.slug,
            "data": str(folder / "data" / f"{entry.task.slug}.train.jsonl"),
            "out": str(folder / "adapters" / entry.name),
        }.items():
            yield f"{key} = {json.dumps(value)}"
        yield f"epochs = {entry.epochs}"
        if entry.learning_rate is not None:
            yield f"learning_rate = {entry.learning_rate}"
        yield f"set = {{ {entry.settings} }}"


def publish(folder: Path, registry: list[str]) -> None:
    heading("Publishing")
    there = {row["name"] for row in graft_json("search", *registry)}
    for entry in ENTRIES:
        if f"{NAMESPACE}/{entry.name}" not in there:
            graft(
                "publish", str(folder / "adapters" / entry.name), f"{NAMESPACE}/{entry.name}", "--tag", "v1", *registry
            )


def ask_all(port: int) -> list[dict]:
    """Every adapter and the bare base, all at once: one mixed batch on the server."""
    heading("One batch: every adapter and the bare base answer at once")
    asked = [(entry.task, f"{NAMESPACE}/{entry.name}") for entry in ENTRIES] + [(task, BASE_ID) for task in TASKS]
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda pair: ask(port, *pair), asked))


def ask(port: int, task: Task, model: str) -> dict:
    body = {"model": model, "prompt": QUESTIONS[task], "max_tokens": ANSWER_TOKENS[task], "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            text = json.load(response)["choices"][0]["text"]
            digest = response.headers.get("X-Adapter-Digest", "")
    except urllib.error.HTTPError as error:
        raise GraftError(f"The server refused {model}: {error.read().decode()}") from None
    return {
        "task": task.slug,
        "model": model,
        "answer": text.strip().splitlines()[0] if text.strip() else "",
        "digest": digest,
    }


def show_answers(answers: list[dict]) -> None:
    for task, question in QUESTIONS.items():
        table = Table(title=question.replace("\n", "  "), title_justify="left")
        table.add_column("model")
        table.add_column("answer")
        for answer in answers:
            if answer["task"] == task.slug:
                table.add_row(answer["model"], answer["answer"])
        console.print(table)


def evaluate(task: Task, base: Path, registry: list[str]) -> list[dict]:
    """Scores of every stored adapter of the task and of the bare base, from one mixed run."""
    heading(f"Evaluating every adapter of {task.slug}")
    board = graft_json("eval", "--task", task.slug, "--base", str(base), "--adapters", "all", *registry, show=True)
    table = Table(title=f"{task.slug}: {task.metric} on {board[0]['n']} examples", title_justify="left")
    for column in ("adapter", task.metric, "95 % interval", "p against the base"):
        table.add_column(column)
    for row in board:
        p = row["extra"].get("p_vs_base")
        interval = f"{row['low']:.3f} .. {row['high']:.3f}"
        table.add_row(row["name"] or "(bare base)", f"{row['value']:.3f}", interval, "" if p is None else f"{p:.2g}")
    console.print(table)
    return board


def promote(board: list[dict], registry: list[str]) -> dict:
    best = max((row for row in board if row["name"]), key=lambda row: row["value"])
    heading("Promoting the best")
    why = f"best {best['metric']} on {TOPICS.slug}: {best['value']:.3f}"
    graft("promote", f"{best['name']}@{best['revision']}", "production", "--why", why, *registry)
    return {"name": best["name"], "revision": best["revision"], "alias": "production", "value": best["value"]}


def summary(boards: dict[Task, list[dict]], answers: list[dict], promoted: dict, seconds: float) -> dict:
    return {
        "base": BASE_ID,
        "kinds": sorted({entry.method for entry in ENTRIES}),
        "scores": {task.slug: board for task, board in boards.items()},
        "answers": answers,
        "promoted": promoted,
        "seconds": round(seconds, 1),
    }


def wait_for_end() -> None:
    """Until Ctrl-C or SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def say_where(port: int, keep_serving: bool, folder: Path) -> None:
    heading("What to look at")
    if keep_serving:
        console.print(f"hub     http://127.0.0.1:{port + 1}/  (leaderboard: /tasks/{TOPICS.slug})")
        console.print(f"server  http://127.0.0.1:{port}/v1/models")
        console.print("Ctrl-C stops both.")
    else:
        console.print(f"graft hub serve --registry {folder / 'registry.db'}    then http://127.0.0.1:7860/")
        console.print(
            f"graft serve --base {folder / 'base'} --registry {folder / 'registry.db'}    then http://127.0.0.1:8000/v1/models"
        )
    console.print("Everything of this run is in demo.json.")


def heading(text: str) -> None:
    console.rule(f"[bold]{text}")


def command(*words: str) -> list[str]:
    """A `graft` command line run by this very Python."""
    return [sys.executable, "-m", "graft.hub.cli", *words]


def graft(*words: str) -> None:
    """Run a command as the user would see it. Raises GraftError when it fails."""
    console.print(f"[dim]$ graft {shlex.join(words)}", highlight=False, soft_wrap=True)
    if subprocess.run(command(*words)).returncode:
        raise GraftError(f"`graft {words[0]}` failed; its message is above. What was finished before it is kept.")


def graft_json(*words: str, show: bool = False) -> list[dict]:
    """A command's `--json` answer; its progress goes to the terminal. Raises GraftError when it fails."""
    if show:
        console.print(f"[dim]$ graft {shlex.join(words)}", highlight=False, soft_wrap=True)
    done = subprocess.run([*command(*words), "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise GraftError(f"`graft {words[0]}` failed; its message is above.")
    return json.loads(done.stdout)


@contextmanager
def serving(words: list[str], port: int, path: str) -> Iterator[None]:
    """A `graft` server in the background until the block ends. Raises GraftError if it doesn't come up."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise GraftError(f"Port {port} is taken; choose another with --port.")
    console.print(f"[dim]$ graft {shlex.join(words)} &", highlight=False, soft_wrap=True)
    process = subprocess.Popen(command(*words))
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}{path}", shlex.join(words))
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_up(process: subprocess.Popen, url: str, words: str, limit_s: float = 180) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise GraftError(f"`graft {words}` stopped at once; its message is above.")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise GraftError(f"`graft {words}` did not answer at {url} within {limit_s:.0f} s.")
