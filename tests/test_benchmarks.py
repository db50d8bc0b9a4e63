"""The benchmarks' own arithmetic, and their driver with a system that is a line of Python."""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_percentiles_are_nearest_rank_in_milliseconds():
    from benchmarks.lib.common import percentiles

    assert percentiles([i / 1000 for i in range(1, 101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert percentiles([0.002]) == {"p50": 2.0, "p90": 2.0, "p99": 2.0, "max": 2.0}


def test_latencies_are_per_request():
    from benchmarks.lib.common import latencies

    found = latencies([[1.0, 1.1, 1.3], [2.0, 2.5, 2.6]], start=0.5)
    assert found["ttft_ms"] == {"p50": 500.0, "p90": 1500.0, "p99": 1500.0, "max": 1500.0}
    assert found["itl_ms"]["max"] == 500.0 and found["itl_ms"]["p50"] == 100.0


def test_latencies_are_those_that_graft_bench_tells():
    """Peers measure themselves, in environments without graft: the arithmetic stands twice."""
    from benchmarks.lib.common import latencies
    from graft.server.benchmark.workload import Timing
    from graft.server.benchmark.workload import latencies as latencies_of_bench

    draw = random.Random(0)
    for requests in (1, 2, 3, 50, 101):
        times = [sorted(draw.uniform(0, 9) for _ in range(draw.randint(1, 20))) for _ in range(requests)]
        assert latencies(times, start=-1.0) == latencies_of_bench([Timing(-1.0, tuple(some)) for some in times])


def test_prompts_are_the_same_every_time_and_distinct():
    from benchmarks.lib.common import Workload

    work = Workload(requests=8, prompt_tokens=16)
    assert work.prompts() == Workload.from_json(work.to_json()).prompts()
    assert len({tuple(prompt) for prompt in work.prompts()}) == 8


def test_first_steps_of_every_training_run_are_warm_up():
    from benchmarks.lib.common import training_figures

    assert training_figures([9.0, 1.0, 1.0, 9.0, 2.0, 1.0], tokens=100, steps=3)["tokens_per_s"] == 100.0


def test_ratios_pair_runs_of_the_same_round():
    from benchmarks.lib.harness import Ratio, paired

    samples = {
        "a": [{"round": 1, "tokens_per_s": 10.0}, {"round": 2, "tokens_per_s": 30.0}],
        "b": [{"round": 2, "tokens_per_s": 10.0}, {"round": 3, "tokens_per_s": 1.0}],
        "failed": [{"round": 1, "error": "no"}, {"round": 2, "error": "no"}],
    }
    assert paired(samples, Ratio("", "a", "b")) == [3.0]
    assert paired(samples, Ratio("", "a", "failed")) == []


def _system(name: str, code: str):
    from benchmarks.lib.harness import System

    return System(name, (sys.executable, "-c", code))


def test_systems_take_turns_and_failures_are_reported(tmp_path):
    from benchmarks.lib.harness import Conditions, in_turns

    log = tmp_path / "log"
    line = f"open({str(log)!r}, 'a').write('%s'); print('noise'); print('{{\"tokens_per_s\": 1, \"other_cores\": 0}}')"
    systems = [_system("a", line % "a"), _system("b", line % "b"), _system("c", "raise SystemExit('gone wrong')")]
    given = Conditions(rounds=2, patience_s=0.0, lock=tmp_path / "lock")
    for number, samples in enumerate(in_turns(systems, given, threads=1), 1):
        assert sum(map(len, samples.values())) == number, "results can be written after every row"
    assert log.read_text() == "abab"
    assert [sample["round"] for sample in samples["a"]] == [1, 2]
    assert samples["c"][0]["error"] == "gone wrong"


def test_a_disturbed_run_is_repeated_and_the_least_disturbed_kept(tmp_path):
    from benchmarks.lib.harness import Conditions, undisturbed

    count = tmp_path / "count"
    code = (
        f"import pathlib, json; p = pathlib.Path({str(count)!r}); n = int(p.read_text()) if p.exists() else 0; "
        "p.write_text(str(n + 1)); print(json.dumps({'tokens_per_s': n, 'other_cores': [0.9, 0.5, 0.7][n]}))"
    )
    sample = undisturbed(_system("a", code), Conditions(attempts=3, patience_s=0.0), threads=1)
    assert sample["tokens_per_s"] == 1 and count.read_text() == "3"


def test_peers_need_nothing_of_graft():
    peers = ("hf_transformers", "vllm_engine", "peft_training", "peft_quality", "llama_server")
    libraries = ("common", "http_load", "recorded_trace", "server_process")
    for script in (*(f"lib/{name}.py" for name in libraries), *(f"peers/{peer}.py" for peer in peers)):
        lines = (BENCHMARKS / script).read_text().splitlines()
        assert not [line for line in lines if line.strip().startswith(("import graft", "from graft"))], script


def test_summaries_go_between_their_markers(tmp_path, monkeypatch):
    from benchmarks.lib import report

    monkeypatch.setattr(report, "DOCS", tmp_path / "performance.md")
    begin, end = "<!-- serving: written by benchmarks/tables/serving.py -->\n", "<!-- end of serving -->\n"
    report.DOCS.write_text(f"before\n{begin}old\n{end}after\n")
    report.into_docs(report.RESULTS, "serving", "new\n")
    assert report.DOCS.read_text() == f"before\n{begin}\nnew\n\n{end}after\n"
    report.into_docs(tmp_path, "serving", "elsewhere\n")
    assert "elsewhere" not in report.DOCS.read_text()


def test_ratio_table_says_which_target_is_reached():
    from benchmarks.lib import report
    from benchmarks.lib.harness import Ratio

    samples = {"a": [{"round": 1, "tokens_per_s": 9.0}], "b": [{"round": 1, "tokens_per_s": 10.0}]}
    targets = [Ratio("goal", "a", "b", 0.5, 0.9), Ratio("bar", "a", "b", 0.9, 1.0), Ratio("no", "a", "b", 1.0)]
    lines = report.ratio_table(samples, targets).splitlines()[2:]
    reached = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines}
    assert reached == {"goal": "goal", "bar": "bar", "no": "no"}


@pytest.mark.parametrize("kind", ["lora-r4", "prompt", "ia3"])
def test_made_adapters_load(kind, tmp_path, llama):
    from benchmarks.lib import adapters
    from graft.hub.adapters.artifact import load_artifact
    from graft.hub.base.manifest import record

    record(tmp_path, llama.spec)
    first, second = adapters.make([kind], 2, tmp_path, tmp_path)
    found = [load_artifact(folder, llama.spec) for folder in (first, second)]
    assert found[0].digest != found[1].digest
    assert found[0].fold(llama)
    assert adapters.make([kind], 1, tmp_path, tmp_path) == [first]


def test_options_are_documented():
    command = [sys.executable, "-m", "benchmarks.tables.serving", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert done.returncode == 0 and "--peers" in done.stdout


def test_an_estimate_is_judged_by_what_was_measured():
    from benchmarks.lib import report
    from benchmarks.tables import estimates

    sample = {"row": "lora", "trained_parameters": 7, "estimated_bytes": 2.4e9, "measured_bytes": 2e9}
    sample |= {"estimated_seconds": 1.0, "measured_seconds": 2.0}
    assert estimates.off(sample) == pytest.approx(0.2) and estimates.off(sample, "seconds") == -0.5
    near = sample | {"row": "near", "estimated_bytes": 1.8e9}
    options = argparse.Namespace(threads=1)
    text = estimates.markdown(report.envelope("estimates", options, samples={"rows": [sample, near]}))
    assert "| +20.0% | no |" in text and "| -10.0% | yes |" in text


def test_quality_is_judged_over_the_seeds_that_both_have():
    from benchmarks.tables import quality

    def taken(*seeds):
        return [{"round": n, "values": values, "score": sum(values) / len(values)} for n, values in seeds]

    samples = {
        "graft LoRA": taken((0, [1.0, 1.0, 0.0, 1.0]), (1, [1.0, 0.0, 0.0, 1.0]), (2, [0.0] * 4)),
        "peft LoRA": taken((1, [0.0, 0.0, 0.0, 1.0]), (0, [1.0, 0.0, 0.0, 1.0])),
    }
    difference, p = quality.compared(samples, "graft LoRA")
    assert difference == pytest.approx(0.25) and p == pytest.approx(0.5, abs=0.05)
    assert quality.compared(samples, "graft prompt") is None
    judged = [quality.verdict(*found) for found in ((0.1, 0.01), (0.0, 1.0), (-0.1, 0.3), (-0.1, 0.01))]
    assert judged == ["at least equal", "at least equal", "within noise", "worse"]


def test_every_method_of_peft_is_held_against_peft_and_bottlenecks_against_lora():
    from benchmarks.tables import quality

    assert {
        **{f"graft {name}": f"peft {name}" for name in ("LoRA", "prompt", "prefix", "P-tuning", "IA3")},
        **{f"graft {name}": "graft LoRA" for name in ("series", "parallel")},
    } == quality.PEERS
    assert all((row.peft is None) == name.startswith("graft ") for name, row in quality.ROWS.items())


def test_the_peer_learns_what_follows_the_prompt():
    from benchmarks.peers import peft_quality as peer_quality

    made = peer_quality.tensors_of([{"ids": [5, 6, 7, 2], "answer_start": 2}, {"ids": [8, 2], "answer_start": 1}])
    assert made["input_ids"].tolist() == [[5, 6, 7, 2], [8, 2, 0, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert made["labels"].tolist() == [[-100, -100, 7, 2], [-100, 2, -100, -100]]


def test_a_size_in_numbers_is_the_shape_of_the_base_made_of_it(tmp_path, llama):
    from benchmarks.lib import shapes
    from graft.hub.base.model import load_base

    size = shapes.Size(hidden=64, intermediate=96, layers=2, heads=4, kv_heads=2, vocabulary=0)
    llama.model.save_pretrained(tmp_path / "standard")
    llama.tokenizer.save_pretrained(tmp_path / "standard")
    base = load_base(shapes.made(size, tmp_path / "standard", tmp_path))
    found = shapes.Shape.of(base.spec)
    assert found.linears == size.shape.linears and found.cache_width == size.shape.cache_width
    assert found.body_weights == sum(base.weight(name).numel() for name in base.spec.modules if "proj" in name)


def test_what_is_not_measured_is_projected_and_says_so():
    from benchmarks.tables import sizes

    def taken(**figures):
        return [{"round": 1, **figures}]

    samples = {f"limit @{name}": taken(base={"realistic": 100.0}, adapters={"realistic": 80.0}) for name in sizes.SIZES}
    samples |= {"graft base @1.7": taken(tokens_per_s=70.0), "graft 32 LoRAs @1.7": taken(tokens_per_s=40.0)}
    text = sizes.summary({"samples": samples})
    assert "| 1.7 | graft base | 100 | **70** | 0.7 |" in text
    assert "| 7.5 | graft 32 LoRAs | 80 | 40 (projected) | as one size smaller |" in text


def test_what_a_neighbour_costs_is_a_share_of_the_speed_alone():
    from benchmarks.lib import report
    from benchmarks.tables import neighbour

    def taken(seconds):
        return [{"round": 1, "runs_per_s": 1 / seconds, "seconds": [seconds], "other_cores": 0.0}]

    times = {"train, alone": 1.0, "train, beside one": 1.5, "train, beside two": 2.5, "train, alone, before": 0.99}
    samples = {row: taken(seconds) for row, seconds in times.items()}
    text = neighbour.markdown(report.envelope("neighbour", argparse.Namespace(threads=1), samples=samples))
    assert "| train, beside one | **1.50** |" in text
    reached = [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| train: speed")]
    assert reached == ["bar", "bar", "no"]
    assert report.missed(samples, neighbour.RATIOS, "runs_per_s") == ["train: speed beside two, of that alone"]


def test_a_change_is_noticed_for_the_reason_that_fits():
    from benchmarks.tables.proof import unnoticed

    def row(mutation, outcome, why="", noises=30.0):
        return {"mutation": mutation, "outcome": outcome, "why": why, "noises": noises}

    own, base = "its weights or config changed", "the bare base answers otherwise"
    assert (
        unnoticed([row("none", "proven"), row("a no-op", "refused", own), row("a no-op", "proven", noises=19.0)]) == []
    )
    assert unnoticed([row("two tokens of the tokenizer swapped", "refused", "tokenizer makes other ids", None)]) == []
    for bad in (
        row("a no-op", "proven"),
        row("a no-op", "refused", base),
        row("another base of that shape", "refused", own),
    ):
        assert unnoticed([bad]) == [bad]


def test_the_registrys_table_runs(tmp_path):
    """Its tables change under it: a row that it can't fill any more is seen here, not after an hour's filling."""
    few = {
        "publishes": 2,
        "publishers": 2,
        "megabytes": 32,
        "adapters": 20,
        "repeats": 2,
        "disk": tmp_path,
        "out": tmp_path,
    }
    options = [f"--{name}={value}" for name, value in few.items()]
    command = [sys.executable, "-m", "benchmarks.tables.registry", *options]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0 problems found" in (tmp_path / "registry.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("overhead",), "token"),
        (("loads",), "loads_per_request"),
        (("loads", "--router", "random"), "loads_per_request"),
    ],
)
def test_what_ray_costs_can_be_measured(words, key):
    pytest.importorskip("ray.serve", reason="Ray Serve is in the extra `ray`")
    command = [sys.executable, "-m", "benchmarks.own.ray", *words, "--short"]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])[key]
