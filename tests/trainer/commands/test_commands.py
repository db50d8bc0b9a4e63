"""`graft train` as a user types it: artifacts, JSON, plans, and every mistake answered in one line."""

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from graft.hub.adapters.artifact import load_artifact
from graft.hub.base.model import load_base
from graft.hub.cli.main import main
from graft.hub.errors import GraftError
from graft.hub.registry.registry import Registry
from graft.trainer.commands.shared import print_numbers
from graft.trainer.plan.plan import training_folder
from tests.trainer.cases import write_rows

FAST = ["--steps", "2", "--batch-size", "3", "--dtype", "float32"]


def graft(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_one_adapter_from_flags(base_folder, data, held_out, tmp_path):
    out = tmp_path / "out"
    flags = ["--base", base_folder, "--method", "lora", "--task", "letters", "--data", data, "--eval-data", held_out]
    done = graft("train", *flags, "--out", out, "--set", "r=4", "--set", "dora=true", "--json", *FAST)
    assert done.exit_code == 0, done.output
    (outcome,) = json.loads(done.stdout)
    assert outcome["folder"] == str(out) and outcome["score"]["n"] == 3 and outcome["steps"] == 2
    artifact = load_artifact(out, load_base(base_folder, dtype="float32", device="cpu").spec)
    assert artifact.config.r == 4 and artifact.config.dora


def test_a_table_for_people(base_folder, data, tmp_path):
    done = graft("train", "--base", base_folder, "--method", "ia3", "--data", data, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0 and "Trained" in done.stdout and "ia3" in done.stdout


def test_a_plan_trains_many_and_a_baseline(base_folder, data, held_out, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""
base = "{base_folder}"
dtype = "float32"
[defaults]
task = "letters"
data = "{data}"
steps = 2
batch_size = 3
[[adapter]]
method = "lora"
out = "{tmp_path}/a"
set = {{ r = 2, rslora = true, targets = ["q_proj", "v_proj"] }}
[[adapter]]
name = "soft"
method = "prompt"
out = "{tmp_path}/b"
eval_data = "{held_out}"
learning_rate = 0.1
set = {{ tokens = 3 }}
[[adapter]]
method = "last-layers"
out = "{tmp_path}/c"
set = {{ layers = 1 }}
"""
    )
    done = graft("train", "--plan", plan, "--json")
    assert done.exit_code == 0, done.output
    _, second, third = json.loads(done.stdout)
    assert (second["name"], third["method"]) == ("soft", "last-layers")
    spec = load_base(base_folder, device="cpu").spec
    artifact = load_artifact(tmp_path / "a", spec)
    assert artifact.config.targets == ("q_proj", "v_proj") and artifact.provenance["task"] == "letters"
    assert load_artifact(tmp_path / "b", spec).provenance["learning_rate"] == 0.1
    assert load_base(tmp_path / "c", device="cpu").spec.parameters == spec.parameters


@pytest.mark.parametrize(
    "change, words",
    [
        (("--method", "lorra"), "Unknown method 'lorra'"),
        (("--set", "rank=8"), "no option 'rank'"),
        (("--set", "r=0"), "greater than 0"),
        (("--set", "targets=nope"), "nope"),
        (("--data", "/nowhere.jsonl"), "can't be read"),
        (("--base", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--max-length", "100000"), "256 positions"),
        (("--steps", "0"), "steps must be a number greater than 0"),
        (("--eval-every", "1"), "needs evaluation data"),
        (("--device", "abacus"), "abacus"),
        (("--seed", str(1 << 70)), "seed must be a number at least 0"),
        (("--epochs", "inf"), "epochs must be a number greater than 0"),
        (("--metric", "foo"), "Unknown metric 'foo'"),
        (("--metric", "f1"), "metric needs evaluation data"),
        (("--task", "Bad Slug!"), "'Bad Slug!' can't name a task"),
        (("--task", ""), "'' can't name a task"),
        (("--base", "no/such/base"), "There is no folder no/such/base, and it is no hub id"),
        (("--set", "r=8.5"), "r='8.5' is not a valid value: a whole number is needed"),
        (("--set", "layers=0,99"), "there is no layer 99; this base's are 0 to 1"),
        (("--set", "r=99999999"), "can use, which is"),
        (("--set", "rank_pattern=k_proj:33"), "r=33 is more than model.layers.0.self_attn.k_proj [32 -> 16] can use"),
        (("--device", "meta"), "graft runs on cpu and cuda"),
        (("--device", "mps"), "graft runs on cpu and cuda"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_1(base_folder, data, tmp_path, change, words):
    flags = {"--base": base_folder, "--method": "lora", "--data": data, "--out": tmp_path / "out", "--steps": "2"}
    flags[change[0]] = change[1]
    done = graft("train", *[part for pair in flags.items() for part in pair])
    assert done.exit_code == 1 and words in done.stderr and "Traceback" not in done.output
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_wrong_usage_exits_2(base_folder, data, tmp_path):
    assert graft("train", "--method", "lora").exit_code == 2
    assert graft("train", "--no-such-flag").exit_code == 2
    plan = tmp_path / "plan.toml"
    plan.write_text("base = 'x'")
    for flag, value in (("--method", "lora"), ("--base", base_folder)):
        clash = graft("train", "--plan", plan, flag, value)
        assert clash.exit_code == 2 and f"{flag} and --plan exclude each other" in clash.stderr
    flags = ["--base", base_folder, "--method", "lora", "--data", data, "--out", tmp_path / "out", "--set", "r"]
    assert graft("train", *flags).exit_code == 2


@pytest.mark.parametrize(
    "text, words",
    [
        ("base = ", "not valid TOML"),
        ("x = 1\nbase = 'o/b'", "unknown key 'x'"),
        ("base = 'o/b'", "plans no adapter"),
        ("[[adapter]]\nmethod = 'lora'", "names no base"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'", "lacks out"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\nlr = 1", "unknown key 'lr'"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\nsteps = 'x'", "steps must be a number"),
        ("base = 'o/b'\ndefaults = 3\n[[adapter]]", "are tables"),
        ("base = 'o/b'\nadapter = [1]", "are tables"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\nname = 3", "name must be text"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\neval_data = 3", "eval_data must be text"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\npublish = 3", "publish must be text"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\nseed = 'x'", "seed must be a number"),
        ("base = 'o/b'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\nbatch_size = 2.5", "a whole number"),
        ("base = 'o/b'\ncheckpoint_layers = 'yes'\n[[adapter]]\nmethod = 'lora'\ndata = 'd'\nout = 'o'", "true or"),
        (
            "base = 'o/b'\n[defaults]\nmethod = 'lora'\ndata = 'd'\nout = 'o'\n[[adapter]]\n[[adapter]]",
            "Two adapters of the plan",
        ),
    ],
)
def test_bad_plans_are_named(tmp_path, text, words):
    plan = tmp_path / "plan.toml"
    plan.write_text(text)
    done = graft("train", "--plan", plan)
    assert done.exit_code == 1 and words in done.stderr


def test_a_bad_line_is_named_before_the_base_is_loaded(base_folder, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
    done = graft("train", "--base", base_folder, "--method", "lora", "--data", data, "--out", tmp_path / "out")
    assert done.exit_code == 1 and 'd.jsonl, line 2: there is no "completion"' in done.stderr
    assert "Loading" not in done.output


def test_what_is_trained_can_be_published_at_once(base_folder, data, tmp_path):
    registry = tmp_path / "registry.db"
    flags = ["--base", base_folder, "--method", "lora", "--task", "letters", "--data", data]
    flags += ["--out", tmp_path / "out", "--registry", registry, *FAST]
    refused = graft("train", *flags, "--publish", "no slash")
    assert refused.exit_code == 1 and not (tmp_path / "out").exists()
    done = graft("train", *flags, "--publish", "me/letters")
    assert done.exit_code == 0, done.output
    found = json.loads(graft("search", "--task", "letters", "--registry", registry, "--json").stdout)
    assert [row["name"] for row in found] == ["me/letters"]


@pytest.mark.parametrize("method, words", [("lora", "the base's own folder"), ("full", "the base's own folder")])
def test_the_base_is_never_written_over(base_folder, data, method, words):
    before = {path.name: path.read_bytes() for path in base_folder.iterdir()}
    done = graft("train", "--base", base_folder, "--method", method, "--data", data, "--out", base_folder, *FAST)
    assert done.exit_code == 1 and words in done.stderr
    assert {path.name: path.read_bytes() for path in base_folder.iterdir()} == before


def test_folders_that_can_not_be_written_are_refused_before_the_base_is_loaded(base_folder, data, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    for out, words in (
        (data / "x", "is a file"),
        ("/", "nothing can be written"),
        (tmp_path / "other", "holds a base"),
    ):
        done = graft("train", "--base", base_folder, "--method", "lora", "--data", data, "--out", out, *FAST)
        assert done.exit_code == 1 and words in done.stderr


def test_what_lies_in_the_output_folder_is_only_replaced_when_asked(base_folder, data, tmp_path):
    out = tmp_path / "out"
    flags = ["--base", base_folder, "--data", data, "--out", out, *FAST]
    assert graft("train", "--method", "ia3", *flags).exit_code == 0
    weights = (out / "adapter_model.safetensors").read_bytes()
    refused = graft("train", "--method", "lora", *flags)
    assert refused.exit_code == 1 and "out is there already and not empty" in refused.stderr
    assert (out / "adapter_model.safetensors").read_bytes() == weights
    replaced = graft("train", "--method", "lora", *flags, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert json.loads((out / "graft.json").read_text())["method"] == "lora"
    training_folder(tmp_path / "new").mkdir()
    begun = graft("train", "--method", "lora", *flags[:-7], tmp_path / "new", *FAST)
    assert begun.exit_code == 1 and "new.training holds an interrupted training" in begun.stderr


@pytest.mark.parametrize("out", ["/proc/nowhere/x", "DATA/x", "/dev/full/x"])
def test_what_can_not_be_written_is_found_before_the_base_is_loaded(base_folder, data, out, monkeypatch):
    monkeypatch.setattr("graft.trainer.commands.train._run", None)
    out = out.replace("DATA", str(data))
    done = graft("train", "--base", base_folder, "--method", "ia3", "--data", data, "--out", out, *FAST)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert "Nothing can be written to" in done.stderr or "is a file" in done.stderr


def test_a_disk_without_room_is_found_before_the_first_step(base_folder, data, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    done = graft("train", "--base", base_folder, "--method", "lora", "--data", data, "--out", tmp_path / "x", *FAST)
    assert done.exit_code == 1 and "has 4.00 KiB left, and this training writes up to" in done.stderr


def test_the_working_directory_can_be_the_output(base_folder, data, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    done = graft("train", "--base", base_folder, "--method", "ia3", "--data", data, "--out", ".", *FAST)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "here" / "graft.json").read_text())["name"] == "here"


def plan_of(path, base, data, *adapters, **defaults):
    """A plan file of tables that share steps and data."""
    lines = [f'base = "{base}"', 'dtype = "float32"', "[defaults]", f'data = "{data}"', "steps = 2", "batch_size = 3"]
    lines += [f"{key} = {json.dumps(str(value))}" for key, value in defaults.items()]
    path.write_text("\n".join([*lines, *(f"[[adapter]]\n{adapter}" for adapter in adapters)]))
    return path


def adapter_of(folder, method, rest=""):
    return f'method = "{method}"\nout = "{folder / method}"\n{rest}'


@pytest.mark.parametrize(
    "rest, words",
    [
        ("set = { layers = 99 }", "last-layers: layers must lie in 1..2"),
        ('set = { layers = "\u00b2" }', "last-layers: layers must lie in 1..2"),
        ("set = { r = 8 }", "last-layers has no option 'r'"),
        ('eval_data = "EVAL"\nmetric = "accuracy"', 'needs "labels" on every line'),
        ("max_length = 3", "within 3"),
    ],
)
def test_a_baselines_mistakes_are_found_before_its_adapters_are_trained(base_folder, data, tmp_path, rest, words):
    unlabelled = write_rows(tmp_path / "e.jsonl", [{"prompt": "q", "completion": "r"}])
    baseline = adapter_of(tmp_path, "last-layers", rest.replace("EVAL", str(unlabelled)))
    plan = plan_of(tmp_path / "plan.toml", base_folder, data, adapter_of(tmp_path, "ia3"), baseline)
    done = graft("train", "--plan", plan)
    assert done.exit_code == 1 and words in done.stderr and not (tmp_path / "ia3").exists()


def test_what_can_not_be_scored_is_found_before_the_training(base_folder, data, tmp_path):
    long = write_rows(tmp_path / "e.jsonl", [{"prompt": "q", "completion": "r" * 300, "labels": ["r" * 300, "s"]}])
    flags = ["--base", base_folder, "--method", "ia3", "--data", data, "--eval-data", long, "--out", tmp_path / "out"]
    done = graft("train", *flags, *FAST)
    assert done.exit_code == 1 and "leaves no room" in done.stderr and "2/2" not in done.output


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("cable pulled")])
def test_what_is_finished_is_printed_published_and_taken_as_finished(base_folder, data, tmp_path, monkeypatch, error):
    adapters = adapter_of(tmp_path, "ia3", 'publish = "me/ia3"'), adapter_of(tmp_path, "full")
    plan = plan_of(tmp_path / "plan.toml", base_folder, data, *adapters, task="letters")
    flags = ["train", "--plan", plan, "--registry", tmp_path / "r.db", "--json"]

    def broken(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("graft.trainer.training.base_weights.run_jobs", broken)
        stopped = graft(*flags)
    assert stopped.exit_code == 1 and "Published me/ia3@" in stopped.stderr
    (first,) = json.loads(stopped.stdout)
    written = (tmp_path / "ia3" / "graft.json").stat().st_mtime_ns
    again = graft(*flags, "--resume")
    assert again.exit_code == 0, again.output
    taken, baseline = json.loads(again.stdout)
    assert taken == first and baseline["folder"] == str(tmp_path / "full")
    assert "ia3 is finished, and taken as it is" in again.stderr
    assert "full: there is no checkpoint" in again.stderr and "starts from the beginning" in again.stderr
    assert (tmp_path / "ia3" / "graft.json").stat().st_mtime_ns == written
    third = graft(*flags, "--resume")
    assert json.loads(third.stdout) == [taken, baseline]


def test_an_adapter_of_another_recipe_is_not_taken_as_finished(base_folder, data, tmp_path):
    flags = ["--base", base_folder, "--method", "ia3", "--data", data, "--out", tmp_path / "out", *FAST]
    assert graft("train", *flags).exit_code == 0
    refused = graft("train", *flags, "--seed", "7", "--resume")
    assert refused.exit_code == 1 and "it is not what out would become; --overwrite replaces it" in refused.stderr
    again = graft("train", *flags, "--seed", "7", "--resume", "--overwrite", "--json")
    assert again.exit_code == 0 and "starts from the beginning" in again.stderr
    assert json.loads((tmp_path / "out" / "graft.json").read_text())["seed"] == 7


def test_one_that_can_not_be_published_leaves_the_others_published(base_folder, data, tmp_path, monkeypatch):
    adapters = [adapter_of(tmp_path, name, f'publish = "me/{name}"') for name in ("ia3", "bitfit")]
    plan = plan_of(tmp_path / "plan.toml", base_folder, data, *adapters)
    publish = Registry.publish

    def some(self, folder, name, **options):
        if name == "me/ia3":
            raise GraftError("the door is shut.")
        return publish(self, folder, name, **options)

    monkeypatch.setattr(Registry, "publish", some)
    done = graft("train", "--plan", plan, "--registry", tmp_path / "r.db")
    assert done.exit_code == 1 and "Published me/bitfit@" in done.stderr and "Trained" in done.stdout
    assert done.stderr.strip().endswith("ia3 is trained, but could not be published as me/ia3: the door is shut.")


def test_json_knows_no_nan(capsys):
    print_numbers([{"loss": float("nan"), "score": {"low": float("-inf")}, "steps": 0}])
    assert json.loads(capsys.readouterr().out) == [{"loss": None, "score": {"low": None}, "steps": 0}]


@pytest.mark.parametrize(
    "method, option, words",
    [
        ("parallel", "scale=0", "scale must be a finite number other than 0"),
        ("series", "scale=nan", "scale must be a finite number other than 0"),
        ("series", "bottleneck=99999999", "more than the base's own"),
        ("series", "leave_out=0,1", "leave nothing to train"),
        ("ptuning", "hidden=99999998", "at most 65536"),
        ("prefix", "hidden=99999998", "1..65536"),
    ],
)
def test_options_that_no_training_could_use_are_refused_early(base_folder, data, tmp_path, method, option, words):
    flags = ["--base", base_folder, "--method", method, "--data", data, "--out", tmp_path / "out", "--set", option]
    done = graft("train", *flags, *FAST)
    assert done.exit_code == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_names_are_no_markup_and_the_table_keeps_the_folder(base_folder, data, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    flags = ["--base", base_folder, "--method", "ia3", "--data", data, "--eval-data", data, "--name", "[/x]"]
    write_rows(tmp_path / "d.jsonl", [{"prompt": "q", "completion": "r", "labels": ["r", "s"]}])
    flags[7] = tmp_path / "d.jsonl"
    done = graft("train", *flags, "--out", "a-folder-of-some-length", *FAST)
    assert done.exit_code == 0, done.output
    assert "[/x]" in done.stdout and "[/x]" in done.stderr and "a-folder-of-some-length" in done.stdout


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_hub_that_is_down_is_noticed_before_the_training(base_folder, data, held_out, tmp_path, command):
    flags = ["--base", base_folder, "--data", data, "--eval-data", held_out, "--out", tmp_path / "out", *FAST]
    flags += ["--method", "ia3", "--publish", "me/x"] if command == "train" else ["--methods", "ia3", "--publish", "me"]
    done = graft(command, *flags, "--hub", "http://127.0.0.1:9")
    assert done.exit_code == 1 and "No hub answers at http://127.0.0.1:9" in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.training").exists()


def test_the_dtype_is_chosen_once_and_obeyed_when_resumed(base_folder, data, held_out, tmp_path, monkeypatch):
    flags = ["--base", base_folder, "--method", "ia3", "--data", data, "--out", tmp_path / "out", *FAST[:-2]]

    def chosen(source, device, work, say):
        say("bfloat16 for training: measured.")
        return "bfloat16"

    with monkeypatch.context() as patch:
        patch.setattr("graft.hub.base.dtype_choice.chosen_dtype", chosen)
        patch.setattr("graft.trainer.training.run.score_examples", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        ended = graft("train", *flags, "--eval-data", held_out)
    assert "bfloat16 for training: measured." in ended.stderr and "Continue from step 2" in ended.stderr
    monkeypatch.setattr("graft.hub.base.dtype_choice.chosen_dtype", None)
    resumed = graft("train", *flags, "--eval-data", held_out, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert json.loads((tmp_path / "out" / "graft.json").read_text())["dtype"] == "bfloat16"
    assert graft("train", *flags, "--eval-data", held_out, "--resume").exit_code == 0, "a finished one says it too"
