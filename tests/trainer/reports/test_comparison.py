"""`graft compare` and `graft estimate` as a user types them, and the numbers behind them."""

import json

import pytest

from graft.hub.adapters.artifact import load_artifact
from graft.hub.base.model import load_base
from graft.hub.errors import GraftError
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from graft.trainer.evaluation.scoring import score_examples
from graft.trainer.learners.learner import Learner
from graft.trainer.plan.config import RunConfig, TrainConfig
from graft.trainer.plan.plan import AdapterPlan
from graft.trainer.reports.comparison import compare
from graft.trainer.reports.estimate import estimate, full_fine_tuning, lengths_of
from tests.trainer.cases import ALL
from tests.trainer.commands.test_commands import FAST, graft


def test_the_table_of_the_literature(base_folder, data, held_out, tmp_path):
    out = tmp_path / "table"
    flags = ["--base", base_folder, "--task", "letters", "--data", data, "--eval-data", held_out, "--out", out]
    done = graft("compare", *flags, "--methods", "lora,prompt,full,last-layers", *FAST)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "compare.json").read_text())
    by_method = {line["method"]: line for line in found["lines"]}
    assert list(by_method) == ["none", "lora", "prompt", "full", "last-layers"]
    spec = load_base(base_folder, device="cpu").spec
    assert by_method["full"]["parameters"] == spec.parameters and by_method["none"]["p"] is None
    assert load_artifact(out / "lora", spec).bytes < by_method["lora"]["artifact_bytes"] < spec.parameters * 4
    assert 0 < by_method["last-layers"]["share"] < 1 and 0 <= by_method["lora"]["p"] <= 1
    table = (out / "compare.md").read_text()
    assert "| LoRA |" in table and "| bare base |" in table and table in done.stdout
    assert (out / "compare.svg").stat().st_size > 1000


def test_a_comparison_is_never_written_beside_other_files(base_folder, data, held_out, tmp_path, monkeypatch):
    monkeypatch.setattr("graft.trainer.reports.comparison.compare", None)
    (tmp_path / "old" / "lora").mkdir(parents=True)
    for out in (base_folder, tmp_path / "old"):
        before = sorted(out.iterdir())
        flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", out, "--methods", "ia3"]
        done = graft("compare", *flags, *FAST)
        assert done.exit_code == 1 and "is there already and not empty: choose another folder" in done.stderr
        assert sorted(out.iterdir()) == before


def test_a_comparison_that_is_interrupted_leaves_what_is_finished(base_folder, data, held_out, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("graft.trainer.reports.comparison.train_baseline", interrupted)
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", tmp_path / "t"]
    done = graft("compare", *flags, "--methods", "ia3,full", *FAST)
    assert done.exit_code == 1 and "--resume goes on with the rest" in done.stderr and "ia3. The" in done.stderr
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["ia3"]


def test_an_interrupted_comparison_goes_on_with_the_methods_that_are_left(
    base_folder, data, held_out, tmp_path, monkeypatch
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--methods", "ia3,full", *FAST]
    whole = graft("compare", *flags, "--out", tmp_path / "whole", "--json")
    with monkeypatch.context() as patch:
        patch.setattr("graft.trainer.reports.comparison.train_baseline", interrupted)
        assert graft("compare", *flags, "--out", tmp_path / "t").exit_code == 1
    assert sorted(path.name for path in (tmp_path / "t.training").iterdir()) == ["ia3.json", "none.json"]
    unasked = graft("compare", *flags, "--out", tmp_path / "t")
    assert unasked.exit_code == 1 and "holds an interrupted comparison: --resume goes on" in unasked.stderr
    other = graft("compare", *flags, "--out", tmp_path / "t", "--resume", "--seed", "7")
    assert other.exit_code == 1 and "measured with another seed (0, now 7)" in other.stderr
    with monkeypatch.context() as patch:
        patch.setattr("graft.trainer.reports.comparison.train", None)  # ia3 is not trained again
        rest = graft("compare", *flags, "--out", tmp_path / "t", "--resume", "--json")
    assert rest.exit_code == 0, rest.output
    assert numbers(rest) == numbers(whole) and not (tmp_path / "t.training").exists()


def numbers(done):
    """Of each row, what no machine's speed or memory changes."""
    lines = json.loads(done.stdout)["lines"]
    return [{key: line[key] for key in ("method", "parameters", "artifact_bytes", "score", "p")} for line in lines]


def test_all_in_one_pass_and_the_best_is_published(base_folder, data, held_out, tmp_path):
    out, registry = tmp_path / "table", tmp_path / "registry.db"
    flags = ["--base", base_folder, "--task", "letters", "--data", data, "--eval-data", held_out, "--out", out]
    publish = ["--publish", "ann", "--registry", registry]
    done = graft("compare", *flags, "--methods", "lora,series,last-layers", "--together", *publish, *FAST)
    assert done.exit_code == 0, done.output
    found = json.loads((out / "compare.json").read_text())
    assert found["together"] and [line["method"] for line in found["lines"]][1:] == ["lora", "series", "last-layers"]
    assert "trained in one pass" in (out / "compare.md").read_text()
    alone = graft("compare", *flags[:-1], tmp_path / "alone", "--methods", "lora,series", *FAST)
    assert alone.exit_code == 0 and "trained in one pass" not in alone.stdout
    apart = json.loads((tmp_path / "alone" / "compare.json").read_text())
    assert [line["score"]["value"] for line in apart["lines"]] == [l["score"]["value"] for l in found["lines"][:3]]
    best = max(found["lines"][1:3], key=lambda line: line["score"]["value"])["method"]
    assert [entry.name for entry in Registry(registry).search(Query()).entries] == [f"ann/letters-{best}"]


@pytest.mark.parametrize("name", ["two words", "-x", "a/b"])
def test_a_namespace_that_cannot_be_is_refused_before_training(base_folder, data, held_out, tmp_path, name):
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", tmp_path / "t"]
    done = graft("compare", *flags, "--methods", "lora", "--publish", name, *FAST)
    assert done.exit_code == 1 and "error:" in done.stderr and not (tmp_path / "t").exists()


@pytest.mark.parametrize("max_length, limits", [(None, [256, 256, 236, 256]), (100, [100, 100, 100, 100])])
def test_every_method_is_scored_with_the_length_it_was_trained_with(
    base_folder, data, held_out, tmp_path, monkeypatch, max_length, limits
):
    seen = []

    def scoring(base, forms, examples, metric, limit):
        seen.append(limit)
        return score_examples(base, forms, examples, metric, limit)

    monkeypatch.setattr("graft.trainer.reports.comparison.score_examples", scoring)
    recipe = TrainConfig(steps=1, max_length=max_length)
    template = AdapterPlan("", data, tmp_path / "out", eval_data=held_out, recipe=recipe)
    compare(lambda: load_base(base_folder, device="cpu"), ["lora", "prompt", "last-layers"], template, RunConfig())
    assert seen == limits  # the bare base first; a prompt's 20 virtual tokens take room


def test_a_comparison_refuses_what_it_cannot_train(base_folder, data, held_out, tmp_path):
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", tmp_path / "t"]
    done = graft("compare", *flags, "--methods", "lora,lorra", *FAST)
    assert done.exit_code == 1 and "Unknown method 'lorra'" in done.stderr


def test_the_cost_before_it_is_paid(base_folder, data):
    done = graft("estimate", "--base", base_folder, "--method", "lora,prefix,full", "--data", data, "--json", *FAST)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    lora, prefix, full = told["costs"]
    spec = load_base(base_folder, device="cpu").spec
    assert full["trained_parameters"] == spec.parameters and full["share"] == 1
    assert lora["optimizer_bytes"] == 8 * lora["trained_parameters"]
    assert prefix["peak_bytes"] > 0 and lora["steps"] == 2
    assert told["full_fine_tuning"]["moments_bytes"] == 8 * spec.parameters
    shown = graft("estimate", "--base", base_folder, "--method", "lora", *FAST)
    assert shown.exit_code == 0 and "Full fine-tuning in float32" in shown.stdout


def test_lengths_are_those_of_the_longest_batch(llama, data):
    tokens, learned, examples = lengths_of(data, llama, 256, 3)
    assert (tokens, learned, examples) == (12, 4, 12)  # "abababx?", " xx" and EOS, in bytes


@pytest.mark.parametrize("method", ALL)
def test_every_method_has_a_cost(llama, tmp_path, method):
    plan = AdapterPlan(method, tmp_path, tmp_path, options=ALL[method], recipe=TrainConfig(batch_size=4))
    cost = estimate(llama, plan, RunConfig(), length=20, learned=3, steps=10)
    assert cost.trained_parameters > 0 and cost.artifact_bytes > 0 and cost.seconds == 10 * cost.seconds_per_step


@pytest.mark.parametrize("recompute", [False, True])
def test_layers_are_recomputed_in_the_estimate_as_in_the_training(llama, tmp_path, monkeypatch, recompute):
    calls = []
    from graft.trainer.forward import checkpointing

    kept = checkpointing.checkpoint

    def counted(*arguments, **options):
        calls.append(1)
        return kept(*arguments, **options)

    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    plan = AdapterPlan("lora", tmp_path, tmp_path, recipe=TrainConfig(batch_size=4))
    estimate(llama, plan, RunConfig(checkpoint_layers=recompute), length=20, learned=3, steps=1)
    assert bool(calls) == recompute


def test_the_arithmetic_of_full_fine_tuning():
    assert full_fine_tuning(10).total_bytes == 160


def diverging(*arguments, **options):
    raise GraftError("Out of memory | here.")


def test_one_method_that_fails_leaves_the_table_of_the_others(base_folder, data, held_out, tmp_path, monkeypatch):
    out = tmp_path / "table"
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--methods", "ia3,bitfit,full"]
    monkeypatch.setattr("graft.trainer.reports.comparison.train_baseline", diverging)
    update = Learner.update

    def diverges(self, loss, tokens):
        update(self, float("nan") if self.name == "bitfit" else loss, tokens)

    monkeypatch.setattr(Learner, "update", diverges)
    done = graft("compare", *flags, "--out", out, *FAST)
    assert done.exit_code == 0, done.output
    bare, ia3, bitfit, full = json.loads((out / "compare.json").read_text())["lines"]
    assert ia3["score"]["n"] == 3 and ia3["failed"] is None and bare["failed"] is None
    assert bitfit["score"] is None and bitfit["failed"] == "diverged: the loss of step 1 is not finite"
    assert full["failed"] == "Out of memory | here"
    rows = [line for line in (out / "compare.md").read_text().splitlines() if "failed" in line]
    assert rows[0].startswith("| BitFit |") and "failed: diverged" in rows[0] and "Out of memory \\| here" in rows[1]
    assert "full failed: Out of memory" in done.stderr
    none = graft("compare", *flags[:-1], "full", "--out", tmp_path / "none", *FAST)
    assert none.exit_code == 1 and "No method was trained" in none.stderr
    assert "2 steps each" in (tmp_path / "none/compare.md").read_text(), "what none of them could use up"


@pytest.mark.parametrize(
    "change, code, words",
    [
        ({"--out": "/proc/nowhere"}, 1, "othing can be written to /proc/nowhere"),
        ({"--out": "FILE"}, 1, "is a file"),
        ({"--methods": " , "}, 2, "--methods names no method"),
        ({"--methods": "full", "--publish": "me"}, 1, "leave bases"),
    ],
)
def test_a_comparison_that_could_not_end_well_does_not_begin(
    base_folder, data, held_out, tmp_path, monkeypatch, change, code, words
):
    monkeypatch.setattr("graft.trainer.reports.comparison.compare", None)
    flags = {
        "--base": base_folder,
        "--data": data,
        "--eval-data": held_out,
        "--out": tmp_path / "t",
        "--methods": "ia3",
    }
    flags |= {key: str(data) if value == "FILE" else value for key, value in change.items()}
    done = graft("compare", *[part for pair in flags.items() for part in pair], *FAST)
    assert done.exit_code == code and words in done.stderr


def test_an_estimate_of_nothing_is_refused(base_folder):
    done = graft("estimate", "--base", base_folder, "--method", "")
    assert done.exit_code == 2 and "--method names no method" in done.stderr


def test_an_estimate_counts_the_virtual_tokens(base_folder):
    flags = ["--base", base_folder, "--method", "prompt", "--set", "tokens=200"]
    done = graft("estimate", *flags, "--length", "100", *FAST)
    assert done.exit_code == 1 and "100 tokens, 8 of them learned, does not fit into 56" in done.stderr


def test_a_table_that_the_disk_has_no_room_for_is_printed(base_folder, data, held_out, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graft.trainer.reports.table.plot", full)
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", tmp_path / "t"]
    done = graft("compare", *flags, "--methods", "ia3", *FAST)
    assert done.exit_code == 1 and "No space left" in done.stderr and "| IA3 |" in done.stdout
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["ia3"]
