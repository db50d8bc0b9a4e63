"""`graft demo`: the order of the story.

Base and data are fetched, adapters of several kinds are trained on three tasks, published, found by task, served in
one mixed batch beside the bare base, evaluated, and the best is promoted. Every stage is a `graft` command or an HTTP
request. A rerun goes on where the last one stopped.
"""

import shutil
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console

from graft.hub.base.named_bases import is_imported
from graft.hub.demo import stages
from graft.hub.demo.lock import hold_folder
from graft.hub.demo.notebook import Notebook
from graft.hub.demo.pace import StageWork
from graft.hub.demo.running import CommandRunner, hear_termination
from graft.hub.demo.servers import ports, run_server
from graft.hub.demo.stages import Demo, Refused
from graft.hub.demo.story import BASE, SHORT, WHOLE, Story
from graft.hub.demo.teller import Teller
from graft.hub.errors import GraftError
from graft.hub.machine.cache_folder import cache_folder
from graft.hub.machine.output_folder import room_at

_LETTERS = 240  # of an example, about, before the data is there


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65534),
    help="Of the inference server; the hub takes the next one.  [default: from 8000 on, what is free]",
)
@click.option("--keep-serving", is_flag=True, help="Leave server and hub, with its playground, up until Ctrl-C.")
@click.option(
    "--folder", default="demo", show_default=True, type=click.Path(path_type=Path), help="Where all of it goes."
)
@click.option("--short", is_flag=True, help="Three adapters and one task: every stage in two minutes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all trainings.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Of the arithmetic.  [default: what is fast here]"
)
def demo(port: int | None, keep_serving: bool, folder: Path, short: bool, seed: int, dtype: str | None) -> None:
    """Train, publish, browse, serve mixed, evaluate and promote: the whole story on a real model."""
    started = time.monotonic()
    server_port, hub_port = ports(port)
    notes = Notebook(folder, {"short": short, "seed": seed, "dtype": dtype})
    _check_room(folder)
    story = SHORT if short else WHOLE
    with hold_folder(folder) as lock:
        again = notes.forget_refusals(story.entries)
        console = Console()
        teller = Teller(console, _plan(story, notes))
        run = Demo(story, notes, CommandRunner(console, folder / "commands.log", lock), teller, seed, dtype)
        hear_termination()
        try:
            report, refused = _tell(run, server_port, again)
        except KeyboardInterrupt:
            raise GraftError("Stopped. The same command goes on from here.") from None
        report["seconds"] = round(time.monotonic() - started, 1)
        stages.write_report(folder / "demo.json", report)
        _say_end(run, report, refused)
        if keep_serving:
            with suppress(KeyboardInterrupt):  # the way to end it
                _keep_serving(run, server_port, hub_port)
        else:
            _say_next(run)
    if refused:
        raise GraftError(
            f"{len(refused)} of {len(story.entries)} adapters refused; the same command trains them again."
        )


def _check_room(folder: Path) -> None:
    """Raises GraftError where what is to be fetched and made won't fit."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    needed = {folder: 300_000_000, cache: 0 if is_imported(BASE) else 2 * BASE.size + 2 * BASE.disk}
    for place, size in needed.items():
        if room_at(place)[1] < size:
            raise GraftError(f"{place} has less than {size / 1e6:.0f} MB left: make room, or choose another place.")


def _plan(story: Story, notes: Notebook) -> dict[str, StageWork]:
    """Every stage, in order, with the work that is left of it."""
    missing = [entry for entry in story.entries if not notes.is_trained(entry)]
    trained = sum(stages.EPOCHS * story.sizes[entry.task].train * _LETTERS for entry in missing)
    plan = {"fetch": StageWork(light=1), "tasks": StageWork(light=len(story.tasks))}
    plan["train"] = StageWork(trained=trained, heavy=bool(missing))
    plan["publish"] = StageWork(light=len(missing))
    plan["search"] = StageWork(light=1)
    plan["serve"] = StageWork(heavy=1)
    for task in story.tasks:
        models = 1 + sum(entry.task is task for entry in story.entries)
        plan[f"evaluate {task.slug}"] = StageWork(read=models * story.sizes[task].test * _LETTERS, heavy=1)
    plan["promote"] = StageWork(light=1)
    return plan


def _tell(run: Demo, port: int, again: list) -> tuple[dict, Refused]:
    """The story from end to end; returns what there is to report, and who was refused."""
    stage, story, refused = run.teller.stage, run.story, dict[str, str]()
    with stage("fetch", "Base and data"):
        stages.fetch(run)
    with stage("tasks", "Tasks: a metric and an evaluation set each"):
        stages.register_tasks(run)
    with stage("train", f"Training {len(story.entries)} adapters on one frozen base"):
        _add(run, refused, stages.train(run), again)
    with stage("publish", "Publishing"):
        _add(run, refused, stages.publish(run, again), again)
    with stage("search", "Searching by task"):
        stages.search(run)
    with stage("serve", "One batch: every adapter and the bare base answer at once"):
        answers = stages.ask_all(run, port, refused)
        _add(run, refused, {answer.model: answer.refused for answer in answers if answer.refused}, again)
    boards = {}
    for task in story.tasks:
        with stage(f"evaluate {task.slug}", f"Evaluating every adapter of {task.slug}"):
            boards[task.slug], missed = stages.evaluate(run, task)
            _add(run, refused, missed, again)
    with stage("promote", "Promoting the best"):
        promoted = stages.promote(run, boards[story.main.slug], refused)
    report = {
        "base": BASE.id,
        "kinds": sorted({entry.method for entry in story.entries}),
        "seed": run.seed,
        "scores": boards,
        "answers": [asdict(answer) for answer in answers],
        "promoted": promoted,
        "refused": refused,
        "seconds_per_stage": run.teller.seconds,
    }
    return report, refused


def _add(run: Demo, refused: Refused, more: Refused, again: list) -> None:
    """Say who was refused, and note it for the next run at once."""
    for name, why in more.items():
        if name not in refused:
            refused[name] = why
            run.teller.say(f"REFUSED {name}: {why}")
    run.notes.note_refusals({entry.repo: "" for entry in again if not run.notes.is_trained(entry)} | refused)


def _say_end(run: Demo, report: dict, refused: Refused) -> None:
    say, entries = run.teller.say, run.story.entries
    minutes, seconds = divmod(round(report["seconds"]), 60)
    say(
        f"\nDone in {minutes} min {seconds:02} s: {len(entries) - len(refused)} of {len(entries)} adapters served and scored."
    )
    say(f"  all of this run  {run.notes.folder / 'demo.json'}")


def _say_next(run: Demo) -> None:
    """How to serve what was made."""
    graft = "graft" if shutil.which("graft") else sys.argv[0]  # `make demo` runs it where no PATH leads
    registry, inference = f"--registry {run.notes.registry}", "--inference http://127.0.0.1:8000"
    run.teller.say(f"  to serve them    {graft} serve --base {BASE.name} {registry}")
    run.teller.say(f"  to see them      {graft} hub serve {registry} {inference}")


def _keep_serving(run: Demo, server_port: int, hub_port: int) -> None:
    """Server and hub, which knows the server, until Ctrl-C or SIGTERM."""
    folder, inference = run.notes.folder, run.url(server_port)
    hub_words = ("hub", "serve", *run.registry, "--port", str(hub_port), "--inference", inference)
    with (
        run_server(
            run.runner, stages.serve_words(run, server_port), run.url(server_port, "/ready"), folder / "serve.log"
        ),
        run_server(run.runner, hub_words, run.url(hub_port, "/health"), folder / "hub.log"),
    ):
        run.teller.say(
            f"\nhub     {run.url(hub_port)}/  (leaderboard: /tasks/{run.story.main.slug}, playground: /playground)"
        )
        run.teller.say(f"server  {inference}/v1/models\nCtrl-C stops both.")
        threading.Event().wait()
