"""Nothing is served that does not do what it did in training; proofs hold nobody up and are made once."""

import json
import shutil
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters.artifact import load_artifact
from graft.hub.adapters.probe import ProofOutcome
from graft.hub.adapters.validation import inspect_artifact
from graft.hub.base.model import load_base
from graft.hub.errors import ArtifactError
from graft.server.adapters import device as device_module
from graft.server.adapters import prover as prover_module
from graft.server.adapters.time_slices import TimeSlices
from graft.server.engine import engine as engine_module
from graft.server.engine.engine import Engine
from graft.server.engine.request import Request
from graft.server.errors import BrokenError
from graft.trainer.artifact.probe import Prober
from tests.conftest import tiny_model, tiny_tokenizer
from tests.server.conftest import KINDS, no_threads, write_folder
from tests.server.live import ask

ASK = Request((5, 6, 7), "a", max_tokens=2, ignore_eos=True)


@pytest.fixture
def base_folder(tmp_path):
    def make(family="llama", dtype=torch.float32, seed=0):
        folder = tmp_path / f"base-{family}-{dtype}-{seed}"
        tiny_model(family, seed).to(dtype).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


def proven_folder(folder, kind, base, seed=0):
    """A random adapter's folder, with the probe that training would have written."""
    write_folder(folder, kind, base, seed)
    artifact = load_artifact(folder, base.spec)
    return rewritten(folder, Prober(base).probe(artifact).to_json())


def rewritten(folder, probe):
    provenance = json.loads((folder / "graft.json").read_text()) | {"probe": probe}
    (folder / "graft.json").write_text(json.dumps(provenance))
    return folder


def verdict(base, folder):
    with Engine(base, {"a": folder}) as engine:
        engine.generate([ASK])
        return engine.loader.snapshot()[0].case.verdict


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_proven_in_either_dtype(base_folder, tmp_path, kind, dtype):
    folder = base_folder()
    made = proven_folder(tmp_path / "a", kind, load_base(folder, dtype="float32", device="cpu"))
    assert verdict(load_base(folder, dtype=dtype, device="cpu"), made).outcome is ProofOutcome.PROVEN


def test_a_changed_weight_is_refused_though_everything_else_was_made_to_match(base_folder, tmp_path):
    base = load_base(base_folder(), dtype="bfloat16", device="cpu")
    folder = proven_folder(tmp_path / "a", "lora", base)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[-1]
    save_file(tensors | {name: tensors[name] * 1.01}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with Engine(base, {"a": folder}) as engine, pytest.raises(ArtifactError, match="its weights or config are not"):
        engine.generate([ASK])


def test_another_base_of_that_shape_is_refused_though_the_probe_names_its_content(base_folder, tmp_path):
    trained, other = (load_base(base_folder(seed=seed), dtype="float32", device="cpu") for seed in (0, 1))
    folder = proven_folder(tmp_path / "a", "lora", trained)
    probe = json.loads((folder / "graft.json").read_text())["probe"]
    provenance = {"base": {"fingerprint": other.spec.fingerprint}, "probe": probe}
    (folder / "graft.json").write_text(json.dumps(provenance))
    with Engine(other, {"a": folder}) as engine, pytest.raises(ArtifactError, match="the bare base answers its texts"):
        engine.generate([ASK])


def test_a_rounded_copy_is_said_to_be_one(base_folder, tmp_path):
    whole = load_base(base_folder(), dtype="float32", device="cpu")
    copy = load_base(base_folder(dtype=torch.bfloat16), dtype="float32", device="cpu")
    assert whole.spec.fingerprint == copy.spec.fingerprint
    assert verdict(copy, proven_folder(tmp_path / "a", "lora", whole)).outcome is ProofOutcome.ROUNDED
    assert verdict(whole, proven_folder(tmp_path / "b", "lora", copy)).outcome is ProofOutcome.ROUNDED


def test_a_tokenizer_that_reads_otherwise_is_refused(base_folder, tmp_path):
    base = load_base(base_folder(), dtype="float32", device="cpu")
    folder = proven_folder(tmp_path / "a", "lora", base)
    probe = json.loads((folder / "graft.json").read_text())["probe"]
    probe["texts"][1]["text"] = "quite another text"
    with Engine(base, {"a": rewritten(folder, probe)}) as engine, pytest.raises(ArtifactError, match="other ids"):
        engine.generate([ASK])


def test_old_probes_and_none_say_only_what_they_can_and_once(llama, tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "a", "prompt", llama)
    assert "no probe" in verdict(llama, folder).why
    sequence = {"tokens": [5, 9, 11], "top_tokens": [4, 5], "top_logprobs": [-0.5, -1.5]}
    found = verdict(llama, rewritten(folder, {"dtype": "bfloat16", "sequences": [sequence] * 3}))
    assert found.outcome is ProofOutcome.UNPROVEN and "bfloat16" in found.why
    monkeypatch.setattr(prover_module, "answers", None)
    assert verdict(llama, folder) == found


def test_a_proof_is_made_once_and_many_share_a_pass(base_folder, tmp_path, monkeypatch):
    base = load_base(base_folder(seed=7), dtype="float32", device="cpu")
    folders = {kind: proven_folder(tmp_path / kind, kind, base, 3) for kind in KINDS}
    passes = []
    true = prover_module.answers
    monkeypatch.setattr(
        prover_module, "answers", lambda stored, asked, pause: passes.append(len(asked)) or true(stored, asked, pause)
    )
    turn, all_there = prover_module.Prover.turn, []

    def patient(self, *seconds):
        """Whoever loads slowly comes in, too, before the first pass begins."""
        if len(self._waiting) == len(folders):
            all_there.append(True)
        if all_there:
            turn(self, *seconds)

    monkeypatch.setattr(prover_module.Prover, "turn", patient)
    requests = [Request((5, 6, 7), name, max_tokens=1) for name in folders]
    for _ in range(2):  # an engine that comes later finds what was proven
        with Engine(base, folders) as engine:
            engine.generate(requests)
    assert sum(passes) == len(folders) + 1 and len(passes) < len(folders)  # and the bare base, once


def test_what_is_remembered_of_proofs_is_bounded_and_what_was_forgotten_is_proven_again(
    base_folder, tmp_path, monkeypatch
):
    """Each of these brings questions of its own, as strangers' may, and comes in twice."""
    base = load_base(base_folder(seed=9), dtype="float32", device="cpu")
    folders = {}
    for number in range(3):
        folder = folders[str(number)] = proven_folder(tmp_path / str(number), "lora", base, number)
        probe = json.loads((folder / "graft.json").read_text())["probe"]
        rewritten(folder, probe | {"texts": probe["texts"][: 1 + number]})
    monkeypatch.setattr(prover_module, "MOST_SAID", 1)
    monkeypatch.setattr(engine_module, "MOST_SAID", 1)
    monkeypatch.setattr(device_module, "MOST_PROVEN", 1)
    with Engine(base, folders) as engine:
        for name in [*folders] * 2:
            engine.generate([replace(ASK, model=name)])
            ask(engine, lambda: [engine.residency.drop(one.digest) for one in engine.residency.snapshot()])
        held = engine._base_said, engine.prover._said, engine.residency._proven
        assert [len(one) for one in held] == [1, 1, 1]


def test_an_adapter_is_not_refused_for_what_the_bare_base_says(base_folder, tmp_path, monkeypatch):
    """Its own answers that are no numbers are remembered as a failed load; the base's are the server's fault."""
    base = load_base(base_folder(), dtype="float32", device="cpu")
    folder = proven_folder(tmp_path / "a", "lora", base)
    with Engine(base, {"a": folder}) as engine:
        begin = engine.runner.begin

        def once_no_numbers(*step):
            monkeypatch.setattr(engine.runner, "begin", begin)
            result = begin(*step)()
            return lambda: replace(result, scores=tuple(None for _ in result.scores))

        monkeypatch.setattr(engine.runner, "begin", once_no_numbers)
        with pytest.raises(BrokenError, match="base's own answers"):
            engine.generate([ASK])
        assert len(engine.generate([ASK])[0].tokens) == 2


def test_a_pass_is_bounded_by_the_rows_it_answers(base_folder, tmp_path, monkeypatch):
    base = load_base(base_folder(seed=8), dtype="float32", device="cpu")
    folders = {kind: proven_folder(tmp_path / kind, kind, base, 5) for kind in ("lora", "prefix", "bitfit")}
    passes, true = [], prover_module.Prover._verdicts
    monkeypatch.setattr(
        prover_module.Prover, "_verdicts", lambda self, cases: passes.append(len(cases)) or true(self, cases)
    )
    monkeypatch.setattr(prover_module, "_ROWS", 1)
    with Engine(base, folders) as engine:
        engine.generate([Request((5, 6, 7), name, max_tokens=1) for name in folders])
    assert passes == [1, 1, 1]


def test_what_breaks_in_a_pass_costs_its_own_adapter_only(base_folder, tmp_path, monkeypatch):
    base = load_base(base_folder(), dtype="float32", device="cpu")
    folders = {kind: proven_folder(tmp_path / kind, kind, base, 4) for kind in ("lora", "prefix", "bitfit")}
    bad = inspect_artifact(folders["prefix"], base.spec).digest
    true = prover_module.Prover._judge

    def judged(self, case, told, content):
        if case.digest == bad:
            raise MemoryError("as if there were none")
        return true(self, case, told, content)

    monkeypatch.setattr(prover_module.Prover, "_judge", judged)
    with Engine(base, folders) as engine:
        with pytest.raises(BrokenError, match="can't be run here"):
            engine.generate([Request((5, 6), name, max_tokens=1) for name in folders])
        assert engine.generate([Request((5, 6), name, max_tokens=1) for name in ("lora", "bitfit")])


def test_who_fails_to_hear_a_verdict_keeps_nobody_from_his(llama, tmp_path):
    prover, heard = prover_module.Prover(llama), []
    cases = [prover_module.Case(name) for name in "ab"]  # without anything to prove: the pass itself breaks

    def deaf(verdict):
        raise RuntimeError("as a fault would")

    prover.prove(cases[0], deaf)
    prover.prove(cases[1], heard.append)
    with pytest.raises(RuntimeError):
        prover.turn(1.0)
    prover.turn(1.0)
    assert len(heard) == 1 and not prover.busy
    prover.close()


def test_where_no_thread_can_be_started_for_proofs_those_who_wait_are_told_and_the_engine_goes_on(
    llama, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "cache"))
    folders = {name: proven_folder(tmp_path / name, "lora", llama, 60 + seed) for seed, name in enumerate("abc")}

    def deadly(self, together):
        raise SystemExit

    with Engine(llama, folders) as engine:
        with no_threads("graft-prover"):
            with monkeypatch.context() as patched:
                patched.setattr(prover_module.Prover, "_pass", deadly)
                with pytest.raises(BrokenError, match="thread of the proofs has ended"):
                    engine.generate([replace(ASK, model="a")])
            with pytest.raises(BrokenError, match="A proof failed: RuntimeError: can't start new thread"):
                engine.generate([replace(ASK, model="b")])
            assert engine.generate([replace(ASK, model=None)])
        assert engine.generate([replace(ASK, model=name) for name in folders]) and engine.alive


def test_work_that_raises_ends_its_turn_and_the_next_work_runs():
    turns, seen = TimeSlices("test"), []
    turns.start(lambda: [][0])
    turns.go(1.0)
    assert not turns.busy
    turns.start(lambda: seen.append(1))
    turns.go(1.0)
    assert seen == [1]
    turns.close()


def test_turns_run_only_while_they_are_let():
    turns, seen = TimeSlices("test"), []

    def work():
        for i in range(50):
            time.sleep(0.001)
            seen.append(i)
            turns.pause()

    turns.start(work)
    time.sleep(0.02)
    assert not seen
    began = time.monotonic()
    turns.go(0.005)
    assert 0 < len(seen) < 50 and time.monotonic() - began < 0.04
    at_rest = len(seen)
    time.sleep(0.02)
    assert len(seen) == at_rest and turns.busy
    while turns.busy:
        turns.go(0.01)
    assert seen == list(range(50))
    turns.start(work)
    turns.go(0.003)
    turns.close()  # in the middle of it
    assert len(seen) < 100


def test_a_copy_with_a_wrong_probe_does_not_get_the_original_refused(base_folder, tmp_path):
    """Adapters with the same weights are one in memory, and whoever copies one brings the probe that they like."""
    base = load_base(base_folder(seed=3), dtype="float32", device="cpu")
    original = proven_folder(tmp_path / "original", "lora", base)
    other = proven_folder(tmp_path / "other", "lora", base, seed=1)
    copy = shutil.copytree(original, tmp_path / "copy")
    rewritten(copy, json.loads((other / "graft.json").read_text())["probe"])
    with Engine(base, {"copy": copy, "original": original}) as engine:
        copied, original_one = (engine.submit(replace(ASK, model=name)) for name in ("copy", "original"))
        original_one.result()
        with suppress(ArtifactError):  # where its proof had ended before the original was there
            copied.result()
    with Engine(base, {"copy": copy, "original": original}) as engine:
        with pytest.raises(ArtifactError, match="its weights or config are not"):
            engine.generate([replace(ASK, model="copy")])
        engine.generate([replace(ASK, model="original")])
