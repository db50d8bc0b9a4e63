"""What the trainer's tests share: small data, every method with small sizes, plans and trainees."""

import json
from pathlib import Path

from graft.trainer.plan.config import TrainConfig
from graft.trainer.plan.plan import AdapterPlan
from graft.trainer.training.run import prepare

ROWS = [
    {
        "prompt": f"{'ab' * (i % 4)}{'xyz'[i % 3]}?",
        "completion": " " + "xyz"[i % 3] * 2,
        "labels": [" xx", " yy", " zz"],
    }
    for i in range(12)
]
HELD_OUT = [
    {"prompt": f"c{letter}?", "completion": f" {letter * 2}", "labels": [" xx", " yy", " zz"]} for letter in "xyz"
]


def write_rows(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


RECIPE = TrainConfig(batch_size=3, steps=4, learning_rate=1e-2)
ALL = {
    "lora": {},
    "series": {},
    "parallel": {},
    "prompt": {"tokens": "3"},
    "prefix": {"tokens": "3"},
    "ptuning": {"tokens": "3", "hidden": "8"},
    "bitfit": {},
    "ia3": {},
}


def plan(data, out, method="lora", **fields):
    return AdapterPlan(method, data, out, options=ALL[method], recipe=fields.pop("recipe", RECIPE), **fields)


def trainee(base, data, method="lora", recipe=RECIPE, **options):
    options = {**ALL.get(method, {}), **options}
    return prepare(
        base, AdapterPlan(method, data, Path("nowhere"), name=method, options=options, recipe=recipe)
    ).learner


class Watching:
    """A watcher that looks at a trainee after one of its steps."""

    def __init__(self, look, at_step=4):
        self._look, self._at = look, at_step

    def stepped(self, trainee, seconds):
        if trainee.progress.step == self._at:
            self._look(trainee)

    def evaluated(self, trainee, score):
        pass

    def round_ended(self, trainees):
        pass
