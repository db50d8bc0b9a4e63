"""`graft plan` as a user types it: measured here with a tiny base, and from costs that were kept."""

import json

import pytest
from click.testing import CliRunner

from graft.hub.base.manifest import record
from graft.hub.cli.main import main
from tests.conftest import tiny_base

WHAT = ["--adapters", "500", "--rate", "20", "--prompt-tokens", "64", "--new-tokens", "32", "--memory", "4G"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("plan") / "tiny", tiny_base("llama")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    record(folder, made.spec)
    return folder


def plan(*words, code=0):
    done = CliRunner().invoke(main, ["plan", *map(str, words)], env={"COLUMNS": "160"})
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


@pytest.fixture(scope="module")
def kept(base, tmp_path_factory):
    """Costs measured here once, and what was said then."""
    costs = tmp_path_factory.mktemp("costs") / "costs.json"
    options = ["--set", "r=4", "--device", "cpu", "--dtype", "float32", "--save-costs", costs]
    return costs, plan("--base", base, *WHAT, *options).stdout


def test_it_measures_here_and_says_so(kept):
    costs, said = kept
    assert "measured here" in said and "lora r=4" in said and "Short first" in said and "hub.json" in said
    found = json.loads(costs.read_text())
    assert all(step > 0 for step in found["steps"].values()) and found["load"] >= 0
    assert found["file_bytes"] < found["adapter_bytes"] and found["token_bytes"] == 2 * 2 * 2 * 8 * 4


def test_it_takes_costs_that_were_kept(base, kept):
    costs, _ = kept
    found = json.loads(plan("--base", base, *WHAT, "--costs", costs, "--json").stdout)
    assert found["placed"]["replicas"] >= 1 and found["demand"]["rate"] == 20 and found["costs"]["base"] == "tiny"
    assert str(costs) in plan("--base", base, *WHAT, "--costs", costs).stdout


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--adapters", "0"], 2, "0 is not in the range"),
        (["--adapters", "1000000000000"], 2, "1<=x<=10000000"),
        (["--rate", "-1"], 2, "-1"),
        (["--rate", "nan"], 2, "nan is no finite number"),
        (["--rate", "inf"], 2, "inf is no finite number"),
        (["--zipf", "nan"], 2, "nan is no finite number"),
        (["--busy", "nan"], 2, "nan is no finite number"),
        (["--memory", "1K"], 1, "1.00 KiB hold the base"),
        (["--method", "prompt"], 2, "--costs were measured before"),
        (["--busy", "1.5"], 2, "1.5"),
        (["--memory", "much"], 2, "much"),
        (["--memory", "1M"], 1, "give a replica more --memory"),
        (["--rate", "1e12"], 1, "lower --rate"),
        (["--dtype", "float32"], 2, "--costs were measured before"),
        (["--set", "r=4"], 2, "--costs were measured before"),
    ],
)
def test_nonsense_is_refused_in_words(base, kept, words, code, why):
    assert why in plan("--base", base, *WHAT, "--costs", kept[0], *words, code=code).output


def test_nonsense_is_refused_before_anything_is_measured(base):
    (base.parent / "file").touch()
    unwritable = plan("--base", base, *WHAT, "--save-costs", base.parent / "file" / "costs.json", code=1)
    assert "Nothing can be written to" in unwritable.output and "measuring" not in unwritable.output
    assert "KEY=VALUE" in plan("--base", base, *WHAT, "--set", "r", code=2).output
    assert "Unknown method" in plan("--base", base, *WHAT, "--method", "lara", "--dtype", "float32", code=1).output


def test_costs_of_another_base_are_refused(kept, tmp_path, base):
    other = tmp_path / "costs.json"
    other.write_text(kept[0].read_text().replace('"tiny"', '"other"'))
    assert "the costs of other, not of tiny" in plan("--base", base, *WHAT, "--costs", other, code=1).output
