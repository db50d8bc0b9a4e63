"""Each CPU kernel against the best torch has for the same work, in pairs in one process.

    python -m benchmarks.tables.kernel_times [--dtype float32]

Shapes are SmolLM2-135M's. Writes results/kernel_times.json and results/kernel_times.md (kernel_times-float32.* in
float32). In bfloat16 it needs a machine on which oneDNN multiplies that.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib import harness, report
from benchmarks.lib.common import Load
from graft.server.runners.cpu.build import load

COPIES = 30  # of weights and cache, as many as layers, so that they come from memory as in a real step
Pair = tuple[str, Callable[[int], object], Callable[[int], object]]  # name, ours(copy), torch's(copy)


def ours_of(kernels, name: str, dtype: torch.dtype):
    return getattr(kernels, f"{name}_{str(dtype).removeprefix('torch.')}")


def linears(kernels, dtype: torch.dtype) -> Iterator[Pair]:
    for rows in (1, 32, 512):
        for width, out in ((576, 3072), (1536, 576)):
            x = torch.randn(rows, width).to(dtype)
            weights = [torch.randn(out, width).to(dtype) for _ in range(COPIES)]
            ours = [ours_of(kernels, "Linear", dtype)(weight) for weight in weights]
            theirs = [torch.ops.mkldnn._reorder_linear_weight(weight, rows) for weight in weights]

            def packed(i, x=x, theirs=theirs):
                return torch.ops.mkldnn._linear_pointwise(x, theirs[i], None, "none", [], "")

            yield f"linear {rows}x{width}->{out} vs oneDNN packed", lambda i, x=x, ours=ours: ours[i](x), packed


def attention(kernels, dtype: torch.dtype) -> Iterator[Pair]:
    heads, kv_heads, dim, context, batch = 9, 3, 64, 96, 32
    pages = context // 16
    query = torch.randn(batch, heads, dim).to(dtype)
    cache = [torch.randn(2, batch * pages, 16, kv_heads, dim).to(dtype) for _ in range(COPIES)]
    tables = [list(range(i * pages, (i + 1) * pages)) for i in range(batch)]
    slots = [context - 1] * batch

    def grouped(i):
        """Two batched products over query heads grouped by kv head: the best of torch's ways (pages contiguous)."""
        k, v = (x.view(batch, context, kv_heads, dim).transpose(1, 2) for x in cache[i])
        scores = query.view(batch, kv_heads, heads // kv_heads, dim) @ k.transpose(2, 3) * dim**-0.5
        return scores.float().softmax(dim=-1).to(dtype) @ v

    yield (
        "decode attention, 32 rows, context 96 vs grouped bmm",
        lambda i: ours_of(kernels, "attention", dtype)(
            query, *cache[i], tables, range(batch), slots, dim**-0.5, 0, 0.0
        ),
        grouped,
    )


def prompts(kernels, dtype: torch.dtype) -> Iterator[Pair]:
    """Of a whole prompt, its pages contiguous; torch's fused attention."""
    heads, kv_heads, dim, attend = 9, 3, 64, ours_of(kernels, "attention", dtype)
    for rows in (128, 1024):
        query = torch.randn(rows, heads, dim).to(dtype)
        cache = [torch.randn(2, rows // 16, 16, kv_heads, dim).to(dtype) for _ in range(COPIES)]
        pages, slots = [list(range(rows // 16))], list(range(rows))

        def paged(i, query=query, cache=cache, pages=pages, slots=slots):
            return attend(query, *cache[i], pages, [0] * len(slots), slots, dim**-0.5, 0, 0.0)

        def fused(i, query=query, cache=cache):
            k, v = (x.view(1, -1, kv_heads, dim).transpose(1, 2) for x in cache[i])
            q = query.view(1, -1, heads, dim).transpose(1, 2)
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        yield f"prompt attention, {rows} rows vs torch's fused", paged, fused


def adapters(kernels, dtype: torch.dtype) -> Iterator[Pair]:
    rank, width, out, count = 16, 576, 1536, 32
    x, y = torch.randn(count, width).to(dtype), torch.zeros(count, out, dtype=dtype)
    A = [torch.randn(count, rank, width).to(dtype) * 0.02 for _ in range(COPIES)]
    B = [torch.randn(count, rank, out).to(dtype) * 0.02 for _ in range(COPIES)]

    def adapter(a, b):
        form = kernels.LowRank(tap=1, reads=[0], A=a, B=b, a=None, b=None, activation="none")
        return ours_of(kernels, "Adapter", dtype)(taps=2, vectors=[], low_ranks=[form])

    packed = [[adapter(A[copy][i], B[copy][i]) for i in range(count)] for copy in range(COPIES)]

    def products(i):
        return torch.baddbmm(y[:, None], torch.bmm(x[:, None], A[i].transpose(1, 2)), B[i])

    lengths = [0] + [1] * count
    yield (
        "32 distinct LoRAs r=16, 576->1536 vs two bmm",
        lambda i: ours_of(kernels, "detour", dtype)(packed[i], [x, y], 1, lengths),
        products,
    )


def greedy(kernels, dtype: torch.dtype) -> Iterator[Pair]:
    logits = torch.randn(32, 49152).to(dtype)
    yield (
        "argmax 32x49152 vs torch",
        lambda i: ours_of(kernels, "argmax", dtype)(logits),
        lambda i: logits.argmax(dim=-1),
    )


def seconds(work: Callable[[int], object]) -> float:
    """Mean time of one call over all copies."""
    start = time.perf_counter()
    for copy in range(COPIES):
        work(copy)
    return (time.perf_counter() - start) / COPIES


def measured(name: str, ours: Callable[[int], object], theirs: Callable[[int], object], repeats: int) -> dict[str, Any]:
    """Both sides' time of every pair, in microseconds; a first pair warms up and is not kept."""
    load = Load()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats + 1)][1:]
    us, torch_us = ([round(time * 1e6, 2) for time in times] for times in zip(*pairs, strict=True))
    sample = {"kernel": name, "us": us, "torch_us": torch_us, **load.cores()}
    harness.say(f"{name:60} {statistics.median(ratios(sample)):.2f}")
    return sample


def ratios(sample: dict[str, Any]) -> list[float]:
    """Torch's time over ours, of every pair."""
    return [theirs / ours for ours, theirs in zip(sample["us"], sample["torch_us"], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    harness.add_dtype(parser)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--lock", type=Path, help="flock this file meanwhile")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kernels, dtype = load(), getattr(torch, options.dtype)
    if kernels is None:
        raise SystemExit("error: there are no CPU kernels on this machine (the log says why)")
    with harness.held(options.lock):
        pairs = (pair for group in (linears, attention, prompts, adapters, greedy) for pair in group(kernels, dtype))
        samples = [measured(*pair, repeats=options.repeats) for pair in pairs]
    name = harness.named("kernel_times", options.dtype)
    result = report.envelope(name, options, dtype=options.dtype, samples=samples)
    report.write(options.out, result, markdown(result))
    report.into_docs(options.out, result["name"], summary(result))
    print(markdown(result))


def summary(result: dict[str, Any]) -> str:
    """What docs/performance.md shows: a line a kernel."""
    lines = []
    for sample in result["samples"]:
        found = ratios(sample)
        times = (report.figure(statistics.median(sample[side])) for side in ("us", "torch_us"))
        spread = f"{min(found):.2f} to {max(found):.2f} (n={len(found)})"
        lines.append([sample["kernel"], *times, f"**{statistics.median(found):.2f}**", spread])
    return report.table(["kernel", "us", "torch, us", "times as fast", "min to max"], lines)


def markdown(result: dict[str, Any]) -> str:
    return "\n".join(
        [
            report.heading(result, "The CPU kernels beside torch"),
            f"Time of one call, mean over {COPIES} copies of the weights in turn, median over pairs; {result['dtype']}.",
            "",
            summary(result),
        ]
    )


if __name__ == "__main__":
    main()
