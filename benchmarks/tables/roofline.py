"""What the machine allows: memory bandwidth and matrix rates at the base's shapes, and the workload's time from them.

Prints JSON: the rates, and output tokens a second for the base alone and with distinct adapters. "realistic" adds up
arithmetic at the rate a product of that batch reaches and the bytes of keys, values and adapters; "ideal" lets
arithmetic at full rate and all memory traffic overlap perfectly. Nothing is assumed to stay in a cache between steps.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.common import Load, Workload, emit
from benchmarks.lib.shapes import SIZES, Shape
from graft.hub.base.manifest import recorded_spec
from graft.hub.base.model import load_base

_GIGA = 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--size", choices=SIZES, help="in place of a base: one of shapes.py")
    parser.add_argument("--workload", default="{}", help="JSON of common.Workload")
    parser.add_argument("--adapter-weights", type=int, default=0, help="of all adapters together")
    options = parser.parse_args()
    if (options.base is None) == (options.size is None):
        parser.error("give one of --base and --size")
    shape = SIZES[options.size].shape if options.size else _shape_of(options.base)
    workload = Workload.from_json(options.workload)
    load = Load()
    rates = measured_rates(shape, workload.requests, getattr(torch, workload.dtype))
    kinds = {"base": 0, "adapters": options.adapter_weights}
    limits = {name: limits_of(shape, workload, rates, extra) for name, extra in kinds.items()}
    emit({"rates": rates, **limits, **load.cores()})


def _shape_of(base: Path) -> Shape:
    return Shape.of(recorded_spec(base) or load_base(base).spec)


def measured_rates(shape: Shape, batch: int, dtype: torch.dtype) -> dict[str, float]:
    """GB/s of reading memory; GFLOP/s in that dtype of an MLP product with `batch` rows and with 512 rows."""
    width, out = shape.widest
    weight = torch.randn(out, width, dtype=dtype)
    large = torch.ones(128_000_000)
    return {
        "read_gb_s": large.nbytes / best_seconds(large.sum) / _GIGA,
        "step_gflops": _product_rate(weight, batch),
        "prompt_gflops": _product_rate(weight, 512),
    }


def limits_of(shape: Shape, workload: Workload, rates: dict[str, float], adapter_weights: int) -> dict[str, Any]:
    """{"ideal", "realistic"}: output tokens a second of the whole workload."""
    size = getattr(torch, workload.dtype).itemsize
    requests, steps = workload.requests, workload.new_tokens - 1
    context = workload.prompt_tokens + workload.new_tokens / 2
    adapter_flops = 2 * adapter_weights  # each is used once, by its own request
    cache_bytes = requests * context * shape.cache_width * size
    step_flops = 2 * requests * shape.weights + adapter_flops
    prompt_flops = (
        2 * requests * (workload.prompt_tokens * shape.body_weights + shape.head_weights)
        + adapter_flops * workload.prompt_tokens
    )
    prompt = prompt_flops / rates["prompt_gflops"] / _GIGA
    moved = cache_bytes + size * adapter_weights
    bandwidth, full = rates["read_gb_s"] * _GIGA, rates["prompt_gflops"] * _GIGA
    realistic = step_flops / rates["step_gflops"] / _GIGA + moved / bandwidth
    ideal = max(step_flops / full, (size * shape.weights + moved) / bandwidth)
    tokens = workload.output_tokens
    return {
        "ideal": round(tokens / (prompt + steps * ideal), 1),
        "realistic": round(tokens / (prompt + steps * realistic), 1),
    }


def best_seconds(work: Callable[[], Any], repeats: int = 7) -> float:
    """The fastest of several runs, warmed up: limits, unlike results, are about the undisturbed best."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _product_rate(weight: torch.Tensor, rows: int) -> float:
    """GFLOP/s of the better of torch's two ways: the weights as they are, or packed beforehand by oneDNN."""
    x = torch.randn(rows, weight.shape[1], dtype=weight.dtype)
    ways = [lambda: torch.nn.functional.linear(x, weight)]
    if weight.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    flops = 2 * rows * weight.numel()
    count = max(5, int(4e9 / flops))
    return max(flops * count / best_seconds(partial(_repeated, way, count)) / _GIGA for way in ways)


def _repeated(work: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        work()


if __name__ == "__main__":
    main()
