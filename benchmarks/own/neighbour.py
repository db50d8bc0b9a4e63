"""One measurement of graft beside busy processes, as JSON: training, evaluating, or serving with either runner.

Loads and a warm-up come first; the neighbours are busy from then on, a loop of Python each. OpenMP waits as the
environment says, or as graft has it.
"""

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.lib.common import Load, emit, seconds_of
from benchmarks.lib.harness import CACHE
from graft.hub.base.model import Base, load_base
from graft.hub.evaluation.metrics import METRICS
from graft.hub.evaluation.task_data import Example
from graft.hub.machine.compute_threads import ComputeThreads
from graft.server.benchmark.targets import EngineTarget
from graft.server.benchmark.workload import RequestDraw, Workload
from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.evaluation.evaluate import Evaluated, evaluate
from graft.trainer import AdapterPlan, RunConfig, TrainConfig
from graft.trainer.process.allocator import keep_freed_memory
from graft.trainer.training.loop import train_step
from graft.trainer.training.run import prepare

WORDS = ("red", "green", "blue", "fast", "slow", "old", "new", "warm", "cold", "dark", "light", "near", "far", "open")
LABELS = (" yes", " no")
STEPS, BATCH, TEXT_WORDS = 2, 8, 32
EXAMPLES = 24
SERVED = Workload(requests=16, prompt_tokens=32, new_tokens=24)
Run = Callable[[], object]


def main() -> None:
    options = arguments()
    keep_freed_memory()
    with ExitStack() as stack:
        base = load_base(options.base, dtype=options.dtype, device="cpu")
        run = stack.enter_context(WORKS[options.work](base, options.base))
        run()
        stack.enter_context(busy(options.busy))
        load = Load()
        seconds = [seconds_of(run) for _ in range(options.repeats)]
        cores = load.cores()
    emit({"runs_per_s": round(1 / statistics.median(seconds), 4), "seconds": [round(s, 3) for s in seconds], **cores})


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but take a core each."""
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


@contextmanager
def training(base: Base, folder: str) -> Iterator[Run]:
    """A few steps of a LoRA."""
    draw = random.Random(5)
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "train.csv"
        rows = [f"{' '.join(draw.choices(WORDS, k=TEXT_WORDS))}?,{draw.choice(LABELS)}" for _ in range(64)]
        data.write_text("\n".join(["prompt,completion", *rows]) + "\n")
        recipe = TrainConfig(steps=10_000, batch_size=BATCH)
        learner = prepare(base, AdapterPlan("lora", data, Path(place) / "out", recipe=recipe)).learner

        with ComputeThreads() as threads:  # as train_all does

            def run() -> None:
                for _ in range(STEPS):
                    threads.fit()
                    train_step(base, [learner], RunConfig())

            yield run


@contextmanager
def evaluating(base: Base, folder: str) -> Iterator[Run]:
    """A LoRA and the bare base on new examples each time, so that no prompt is found in the cache."""
    draw = random.Random(5)
    with serving_engine(base, folder, "auto") as (engine, names):

        def run() -> None:
            texts = [" ".join(draw.choices(WORDS, k=TEXT_WORDS)) for _ in range(EXAMPLES)]
            examples = [Example(text, draw.choice(LABELS), LABELS) for text in texts]
            evaluate(EngineClient(engine), names[:1], examples, METRICS["accuracy"], Nobody())

        yield run


@contextmanager
def serving(base: Base, folder: str, runner: str) -> Iterator[Run]:
    """Requests that arrive at once, half of them on each of two LoRAs."""
    with serving_engine(base, folder, runner) as (engine, names):
        draw, target = RequestDraw(SERVED, range(1000, base.spec.vocab_size), names), EngineTarget(EngineClient(engine))
        yield lambda: target.run(draw.round(), SERVED.requests)


@contextmanager
def serving_engine(base: Base, folder: str, runner: str) -> Iterator[tuple[Engine, list[str]]]:
    from benchmarks.lib import adapters  # torch, which graft's own imports must come before: they say how threads wait

    made = {f"lora-{number}": path for number, path in enumerate(adapters.make(["lora-r16"], 2, Path(folder), CACHE))}
    with Engine(base, made, options=Options(runner=runner)) as engine:
        yield engine, list(made)


class Nobody:
    """A listener of an evaluation that does not want to know."""

    def loaded(self, systems: int) -> None: ...

    def refused(self, model: str, why: str) -> None: ...

    def scored(self, found: Evaluated) -> None: ...

    def answered(self, done: int, total: int) -> None: ...


WORKS = {
    "train": training,
    "eval": evaluating,
    "serve eager": lambda base, folder: serving(base, folder, "eager"),
    "serve fast": lambda base, folder: serving(base, folder, "fast"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--work", required=True, choices=WORKS)
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    main()
