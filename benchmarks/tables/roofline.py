"""What the machine allows: memory bandwidth and matrix rates at the base's shapes, and the workload's time from them.

Prints JSON: the rates, and output tokens a second for the base alone and with distinct adapters. "realistic" adds up
arithmetic at the rate a product of that batch reaches and the bytes of keys, values and adapters; "ideal" lets
arithmetic at full rate and all memory traffic overlap perfectly. Nothing is assumed to stay in a cache between steps.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.common import Load, Workload, emit
from benchmarks.lib.shapes import SIZES, Shape
from graft.hub.base.manifest import recorded_spec
from graft.hub.base.model import load_base

_GIGA = 1e9
_MOST = 1 << 28  # weights: no cache holds more


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
    """GB/s of reading memory; GFLOP/s in that dtype of an MLP product with `batch` rows and with 512 rows.

    Of weights that come from memory, as a step's do: as many matrices as the model has weights for take turns.
    """
    width, out = shape.widest
    count = max(1, min(_MOST, shape.weights) // (width * out))
    weights = [torch.randn(out, width, dtype=dtype) for _ in range(count)]
    large = torch.ones(128_000_000)
    return {
        "read_gb_s": large.nbytes / best_seconds(large.sum) / _GIGA,
        "step_gflops": _product_rate(weights, batch),
        "prompt_gflops": _product_rate(weights, 512),
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


def _product_rate(weights: Sequence[torch.Tensor], rows: int) -> float:
    """GFLOP/s of the better of torch's two ways: the weights as they are, or packed beforehand by oneDNN."""
    dtype = weights[0].dtype
    x = torch.randn(rows, weights[0].shape[1], dtype=dtype)
    ways = [[partial(torch.nn.functional.linear, x, weight) for weight in weights]]
    if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]
        linear = torch.ops.mkldnn._linear_pointwise
        ways.append([partial(linear, x, weight, None, "none", [], "") for weight in packed])
    turns = max(1, int(4e9 / (2 * rows * weights[0].numel() * len(weights))))
    flops = 2 * rows * sum(weight.numel() for weight in weights) * turns
    return max(flops / best_seconds(partial(_repeated, way, turns)) / _GIGA for way in ways)


def _repeated(work: Sequence[Callable[[], Any]], turns: int) -> None:
    for _ in range(turns):
        for each in work:
            each()


if __name__ == "__main__":
    main()
