"""`graft bench`: throughput and latency of an engine in this process, or of a server by its URL.

Torch and the base are imported when the command runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from graft.hub.machine.cpu_load import usable_cores
from graft.hub.machine.interpreter import hand_on_soon, keep_what_is_there
from graft.hub.terminal.base_argument import BASE
from graft.hub.terminal.options import FiniteRange
from graft.hub.terminal.tables import json_of, print_json, print_table

if TYPE_CHECKING:
    import torch

    from graft.server.benchmark.workload import Workload
    from graft.server.engine.client import EngineClient

KEY = "GRAFT_API_KEY"  # a variable: what stands on a command line, everybody on the machine can read


@click.command()
@click.option(
    "--base", "folder", required=True, type=BASE, help="A folder, a name, or an id (with --url: its tokenizer's)."
)
@click.option("--adapters", default="", help="Folders, comma-separated (with --url: names the server knows).")
@click.option("--distinct", type=click.IntRange(0), help="Request i uses adapter i mod K (0: the bare base alone).")
@click.option("--requests", default=32, show_default=True, type=click.IntRange(1))
@click.option("--prompt-tokens", default=64, show_default=True, type=click.IntRange(16))
@click.option("--new-tokens", default=64, show_default=True, type=click.IntRange(1))
@click.option("--concurrency", type=click.IntRange(1), help="Closed loop: requests under way (default: all at once).")
@click.option("--rate", type=FiniteRange(0, min_open=True), help="Open loop: Poisson arrivals a second.")
@click.option("--zipf", type=FiniteRange(0), help="Draw adapters by Zipf's law with this exponent, not in turn.")
@click.option("--temperature", default=0.0, show_default=True, type=FiniteRange(0), help="0: greedy.")
@click.option("--top-p", default=1.0, show_default=True, type=FiniteRange(0, 1))
@click.option("--top-k", default=0, show_default=True, type=click.IntRange(0), help="0: no limit.")
@click.option("--seed", type=int, help="Of the first request, one more for each further one (default: none).")
@click.option("--logprobs", type=click.IntRange(0, 20), help="Log-probabilities of so many alternatives.")
@click.option("--cold-rate", type=FiniteRange(0, min_open=True), help="Beside it, cold adapters a second (see --cold).")
@click.option("--cold", default="", help="Folders (or names) of adapters to load and unload for --cold-rate.")
@click.option(
    "--repeats", default=3, show_default=True, type=click.IntRange(1), help="Measured rounds after a warm-up."
)
@click.option("--dtype", help="float32, bfloat16, float16 (default: as measured here).")
@click.option("--device", help="cpu, cuda (default: cuda where there is one).")
@click.option("--runner", default="auto", show_default=True, help="auto, fast or eager.")
@click.option("--adapter-device-bytes", type=int, help="Device memory of all adapters.")
@click.option("--url", help=f"A running server instead of an engine in this process. Its key: ${KEY}.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bench(
    folder: str,
    adapters: str,
    distinct: int | None,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    concurrency: int | None,
    rate: float | None,
    zipf: float | None,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int | None,
    logprobs: int | None,
    cold_rate: float | None,
    cold: str,
    repeats: int,
    dtype: str | None,
    device: str | None,
    runner: str,
    adapter_device_bytes: int | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Measure throughput and latency, offline or against a server.

    Output tokens / seconds from submitting all requests to the last token, prefill included; loads and one warm-up
    round come before. Random ids, no two prompts alike, greedy where no temperature is given, EOS ignored; medians over the rounds.
    """
    from graft.server.benchmark.workload import Workload
    from graft.server.sampling.params import Sampling

    named = [one for one in adapters.split(",") if one]
    if distinct and distinct > len(named):
        raise click.UsageError(f"--distinct {distinct} needs as many --adapters; there are {len(named)}.")
    if bool(cold_rate) != bool(cold):
        raise click.UsageError("--cold-rate and --cold go together.")
    sampling = Sampling(temperature, top_p, top_k, seed=seed, logprobs=logprobs)
    work = Workload(requests, prompt_tokens, new_tokens, concurrency, rate, zipf, sampling=sampling)
    plan = BenchPlan(folder, named, distinct, [c for c in cold.split(",") if c], cold_rate, repeats)
    if url:
        result = bench_url(plan, work, url)
    else:
        result = bench_engine(plan, work, dtype, device, runner, adapter_device_bytes)
    if as_json:
        print_json(result)
    else:
        rows = [(name, json_of(value) if isinstance(value, dict) else value) for name, value in result.items()]
        print_table("graft bench", ("figure", "value"), rows)


@dataclass(frozen=True)
class BenchPlan:
    """What is measured, beside the workload. `cold` adapters are asked for once and unloaded, `cold_rate` a second."""

    base: str
    adapters: Sequence[str]
    distinct: int | None
    cold: Sequence[str]
    cold_rate: float | None
    repeats: int

    @property
    def models(self) -> Sequence[str | None]:
        """The adapters in use; (None,) for the bare base."""
        return self.adapters[: self.distinct] or (None,)


def bench_engine(
    plan: BenchPlan,
    work: Workload,
    dtype: str | None,
    device: str | None,
    runner: str,
    device_bytes: int | None,
) -> dict[str, object]:
    """Measure an engine of this process."""
    from graft.hub.base.dtype_choice import chosen_dtype
    from graft.hub.base.model import load_base
    from graft.server.benchmark.dtype_speed import serving
    from graft.server.benchmark.targets import EngineTarget
    from graft.server.benchmark.workload import measure
    from graft.server.engine.client import EngineClient
    from graft.server.engine.engine import Engine
    from graft.server.engine.options import Options

    hand_on_soon()  # as in a server
    began = time.perf_counter()
    dtype = dtype or chosen_dtype(
        plan.base, device, serving(runner, Options.max_running), partial(click.echo, err=True)
    )
    base = load_base(plan.base, dtype=dtype, device=device)
    base_s = time.perf_counter() - began
    folders = {folder: folder for folder in (*plan.adapters, *plan.cold)}
    at_once = work.concurrency or work.requests
    options = Options(runner=runner, device_bytes=device_bytes, max_running=max(Options.max_running, min(at_once, 256)))
    with Engine(base, folders, options=options) as started:
        engine = EngineClient(started)
        began = time.perf_counter()
        _load(engine, plan.adapters)
        load_s = time.perf_counter() - began
        keep_what_is_there()
        beside = (
            _cold_traffic(plan.cold, plan.cold_rate, lambda name: _load_and_unload(engine, name))
            if plan.cold_rate
            else None
        )
        measured = measure(
            EngineTarget(engine), work, _ids(plan.base), plan.models, repeats=plan.repeats, beside=beside
        )
        runs_on = engine.base.runner
    where = {"dtype": base.dtype_name, "device": str(base.device), "runner": runs_on}
    loads = {
        "base_load_s": round(base_s, 3),
        "adapters_load_s": round(load_s, 3),
        "peak_bytes": _peak_bytes(base.device),
    }
    return {**measured, **loads, **_describe(plan, work), **where}


def bench_url(plan: BenchPlan, work: Workload, url: str) -> dict[str, object]:
    """Measure a running server; its memory is its own affair."""
    from graft.server.benchmark.targets import UrlTarget
    from graft.server.benchmark.workload import measure

    target = UrlTarget(url, os.environ.get(KEY))
    began = time.perf_counter()
    for name in plan.adapters:
        target.load(name)
    load_s = time.perf_counter() - began
    beside = _cold_traffic(plan.cold, plan.cold_rate, target.load_and_unload) if plan.cold_rate else None
    measured = measure(target, work, _ids(plan.base), plan.models, repeats=plan.repeats, beside=beside)
    return {**measured, "adapters_load_s": round(load_s, 3), "peak_bytes": None, **_describe(plan, work), "url": url}


def _load(engine: EngineClient, names: Sequence[str]) -> None:
    """All adapters at once, each proven by a token."""
    from graft.server.engine.request import Request

    engine.generate([Request((0,), name, max_tokens=1) for name in names])


def _load_and_unload(engine: EngineClient, name: str) -> None:
    """Ask a cold adapter for a token, and make it cold again."""
    _load(engine, [name])
    engine.unload(name)


def _cold_traffic(cold: Sequence[str], rate: float, once: Callable[[str], None]) -> Callable[[threading.Event], None]:
    """What runs beside a measurement: cold adapters in turn. An error of theirs is raised at the end."""

    def beside(stop: threading.Event) -> None:
        asked: list[Future[None]] = []
        with ThreadPoolExecutor(len(cold)) as pool:
            while not stop.wait(1 / rate):
                asked.append(pool.submit(once, cold[len(asked) % len(cold)]))
        for answer in asked:
            answer.result()

    return beside


def _ids(base: str) -> list[int]:
    """Ids to draw prompts from: all that are not special."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    special = set(tokenizer.all_special_ids)
    return [id for id in range(min(len(tokenizer), AutoConfig.from_pretrained(base).vocab_size)) if id not in special]


def _peak_bytes(device: torch.device) -> int:
    """Most memory ever held: the device's for a GPU, the process's resident set for a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _describe(plan: BenchPlan, work: Workload) -> dict[str, object]:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("grafthub", "torch", "transformers")}
    adapters = {
        "adapters": len(plan.adapters),
        "distinct": len([m for m in plan.models if m]),
        "cold_rate": plan.cold_rate,
    }
    return {**asdict(work), **adapters, "cores": len(usable_cores()), "versions": versions}
