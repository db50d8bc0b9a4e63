"""One measurement of graft's trainer through its Python interface, as JSON. `--adapters N` trains N LoRAs in one run."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lib.common import Load, emit, peak_tree_bytes, training_figures
from graft.hub.base.model import load_base
from graft.trainer import AdapterPlan, RunConfig, TrainConfig, train
from graft.trainer.process.allocator import keep_freed_memory
from graft.trainer.training.base_weights import train_baseline


class Stopwatch:
    """A watcher that keeps the seconds of every step, all adapters' together."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_bytes = 0
        self._latest = 0.0

    def stepped(self, learner: Any, seconds: float) -> None:
        self._latest = seconds

    def evaluated(self, learner: Any, score: Any) -> None:
        pass

    def round_ended(self, learners: Any) -> None:
        self.seconds.append(self._latest)
        self.peak_bytes = peak_tree_bytes()


def main() -> None:
    options = arguments()
    watch = Stopwatch()
    keep_freed_memory()
    base = load_base(options.base, dtype=options.dtype, device="cpu")
    load = Load()
    with tempfile.TemporaryDirectory() as folder:
        plans = [plan_of(options, Path(folder), number) for number in range(options.adapters)]
        if options.targets == "all-weights":
            train_baseline(base, plans[0], RunConfig(dtype=options.dtype), watchers=[watch])
        else:
            train(base, plans, RunConfig(dtype=options.dtype), watchers=[watch])
    tokens = options.adapters * options.batch_size * options.length
    emit(training_figures(watch.seconds, tokens, options.steps) | load.cores() | {"peak_bytes": watch.peak_bytes})


def plan_of(options: argparse.Namespace, folder: Path, number: int) -> AdapterPlan:
    whole = options.targets == "all-weights"
    recipe = TrainConfig(steps=options.steps, batch_size=options.batch_size, learning_rate=1e-4, seed=number)
    return AdapterPlan(
        method="full" if whole else "lora",
        data=options.data,
        out=folder / str(number),
        options={} if whole else {"r": "8", "alpha": "16", "targets": pattern_of(options.targets)},
        recipe=recipe,
    )


def pattern_of(targets: str) -> str:
    """Module names as the regular expression that a target given as text is."""
    return targets if targets == "all-linear" else rf".*\.({targets.replace(',', '|')})"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--targets", required=True, help="module names, all-linear, or all-weights")
    parser.add_argument("--length", type=int, default=128, help="tokens of every example")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences an adapter and step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=1, help="trained at once")
    return parser.parse_args()


if __name__ == "__main__":
    main()
