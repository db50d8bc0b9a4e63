"""What the bars show of a run."""

import io

from rich.console import Console

from graft.trainer import train
from graft.trainer.training.progress import Bars
from tests.trainer.cases import plan


def test_a_bar_an_adapter_with_memory_and_its_last_score(llama, data, held_out, tmp_path):
    console = Console(file=io.StringIO(), width=200)
    adapters = [plan(data, tmp_path / folder, "ia3", name="[/x]", eval_data=held_out) for folder in "ab"]
    seen = []

    class Peeking(Bars):
        def round_ended(self, learners):
            super().round_ended(learners)
            seen.append([task.fields["facts"] for task in self._progress.tasks])

    with Peeking(console) as bars:
        train(llama, adapters, watchers=[bars])
        during = [task.fields["facts"] for task in bars._progress.tasks]
    assert len(during) == 2 and all("tok/s" in fact and "iB" in fact and "accuracy" in fact for fact in during)
    assert all("scoring and saving" in fact for fact in seen[-1]) and "scoring" not in "".join(seen[0])
    assert all("scoring" not in fact for fact in during)
    assert console.file.getvalue().count("[/x]") == 2
