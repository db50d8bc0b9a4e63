"""The dtype nobody asked for: the default, unless the other is measured to be faster by enough."""

import json
from contextlib import contextmanager

import pytest
import torch

from graft.hub.base import dtype_choice
from graft.hub.base.dtype_choice import DtypeOutcome, TimedWork, chosen_dtype
from graft.hub.base.model import default_dtype
from graft.hub.machine.cpu_load import QUIET_CORES, Cores
from graft.server.benchmark.dtype_speed import evaluating, serving
from graft.trainer.training.dtype_speed import TRAINING
from tests.conftest import tiny_base


@pytest.fixture(scope="module")
def stored_in(tmp_path_factory):
    """Folders of a tiny base by the dtype it is stored in."""
    found = {}
    for dtype in ("bfloat16", "float32"):
        found[dtype] = tmp_path_factory.mktemp(dtype)
        base = tiny_base("llama")
        base.model.to(getattr(torch, dtype)).save_pretrained(found[dtype])
        base.tokenizer.save_pretrained(found[dtype])
    return found


class Machine:
    """A clock that only work moves on, in each dtype at its own pace, and the load of others."""

    def __init__(self, monkeypatch, tmp_path, seconds, before=0.0, meanwhile=0.0):
        self.now, self.opened, self.seconds = 0.0, [], seconds
        machine = self

        class Loads:
            def cores(self):
                return Cores(own=1.0, other=meanwhile, stolen=0.0)

        monkeypatch.setattr(dtype_choice, "Load", Loads)
        monkeypatch.setattr(dtype_choice, "_quiet", lambda: before <= QUIET_CORES)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: True)
        monkeypatch.setenv("GRAFT_CACHE", str(tmp_path))

        @contextmanager
        def cases(base):
            dtype = str(base.dtype).removeprefix("torch.")
            machine.opened.append(dtype)

            def run():
                machine.now += machine.seconds[dtype]

            yield {"a step": run}

        self.work = TimedWork("training", (1,), cases)

    def choose(self, folder, device="cpu"):
        said = []
        return chosen_dtype(str(folder), device, self.work, said.append, lambda: self.now), said


@pytest.mark.parametrize("seconds, dtype", [(0.86, "float32"), (0.88, "bfloat16"), (2.0, "bfloat16")])
def test_the_default_is_left_for_a_gain_of_15_percent(stored_in, tmp_path, monkeypatch, seconds, dtype):
    machine = Machine(monkeypatch, tmp_path, {"bfloat16": 1.0, "float32": seconds})
    chosen, (line,) = machine.choose(stored_in["bfloat16"])
    assert chosen == dtype and line.startswith(
        f"{dtype} for training: measured here, float32 is {1 / seconds:.2f} times"
    )
    again, said = machine.choose(stored_in["bfloat16"])
    assert again == dtype and said == [line] and machine.opened == ["bfloat16", "float32"], "once a machine"
    machine.work = TimedWork("training", (2,), machine.work.cases)
    machine.choose(stored_in["bfloat16"])
    assert len(machine.opened) == 4, "another work, another measurement"


def test_beside_other_work_nothing_is_measured_or_nothing_kept(stored_in, tmp_path, monkeypatch):
    fast = {"bfloat16": 1.0, "float32": 0.5}
    machine = Machine(monkeypatch, tmp_path / "a", fast, before=1.0)
    chosen, (line,) = machine.choose(stored_in["bfloat16"])
    assert chosen == "bfloat16" and "other work is running" in line and not machine.opened
    machine = Machine(monkeypatch, tmp_path / "b", fast, meanwhile=1.0)
    assert machine.choose(stored_in["bfloat16"])[0] == "float32"
    assert machine.choose(stored_in["bfloat16"])[0] == "float32" and len(machine.opened) == 4


def test_where_there_is_no_choice_nothing_is_measured(stored_in, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, tmp_path, {})
    for folder in (stored_in["float32"], tmp_path, "no/such"):
        assert machine.choose(folder) == (None, [])
    assert not machine.opened
    assert default_dtype("cpu", torch.bfloat16) == default_dtype("cuda", None) == torch.bfloat16
    assert default_dtype("cpu", torch.float32) == default_dtype("cpu", None) == torch.float32


def test_a_cache_that_is_no_outcome_is_measured_anew(stored_in, tmp_path, monkeypatch):
    machine = Machine(monkeypatch, tmp_path, {"bfloat16": 1.0, "float32": 1.0})
    machine.choose(stored_in["bfloat16"])
    (kept,) = (tmp_path / "dtype").iterdir()
    kept.write_text(json.dumps({"dtype": "float64"}))
    machine.choose(stored_in["bfloat16"])
    assert len(machine.opened) == 4


def test_cases_are_weighed_by_their_geometric_mean():
    outcome = DtypeOutcome("bfloat16", "float32", {"1 row": 0.5, "64 rows": 2.0})
    assert outcome.gain == pytest.approx(1.0) and outcome.dtype == "bfloat16"
    assert "(1 row 0.50, 64 rows 2.00), and it takes 1.15 to leave the default" in outcome.sentence("serving")


@pytest.mark.parametrize(
    "work", [TRAINING, serving("eager", 3), serving("auto", 2), evaluating()], ids=lambda w: w.name
)
def test_the_real_kernels_are_timed_on_the_first_layers(stored_in, monkeypatch, work):
    monkeypatch.setattr(dtype_choice, "_SAMPLE_BYTES", 1000)
    monkeypatch.setattr(dtype_choice, "_quiet", lambda: True)
    seen, said = [], []

    @contextmanager
    def watched(base):
        seen.append((base.dtype, base.spec.num_layers))
        with work.cases(base) as cases:
            yield cases

    chosen = chosen_dtype(str(stored_in["bfloat16"]), "cpu", TimedWork(work.name, work.sizes, watched), said.append)
    assert sorted(seen, key=str) == [(torch.bfloat16, 1), (torch.float32, 1)]
    assert chosen in ("bfloat16", "float32") and said[0].startswith(f"{chosen} for {work.name}: measured here")
