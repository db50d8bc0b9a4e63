"""One measurement of vLLM (its CPU build), without adapters, with one LoRA, or with several in one batch, as JSON.

Runs in vLLM's own virtual environment (venvs.py makes it); imports nothing of graft.
"""

import argparse
import time
from pathlib import Path

from benchmarks.lib.common import Workload, emit, latencies, measure


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    options = arguments()
    workload = Workload.from_json(options.workload)
    loras = {"enable_lora": True, "max_loras": len(options.adapters), "max_lora_rank": options.rank}
    llm = LLM(
        model=options.base,
        dtype=workload.dtype,
        max_model_len=workload.prompt_tokens + workload.new_tokens + 64,
        max_num_seqs=workload.requests,
        enforce_eager=options.eager,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
        **(loras if options.adapters else {}),
    )
    adapters = [LoRARequest(folder.name, number, str(folder)) for number, folder in enumerate(options.adapters, 1)]
    prompts = [{"prompt_token_ids": ids} for ids in workload.prompts()]
    lora_of = [adapters[i % len(adapters)] if adapters else None for i in range(workload.requests)]
    rules = {
        "temperature": workload.temperature,
        "top_p": workload.top_p,
        "logprobs": workload.logprobs,
        "max_tokens": workload.new_tokens,
        "min_tokens": workload.new_tokens,
        "ignore_eos": True,
        "detokenize": False,
    }
    seeds = [i if workload.seeded else None for i in range(workload.requests)]
    sampling = [SamplingParams(**rules, seed=seed) for seed in seeds]
    streaming = [SamplingParams(**rules, seed=seed, output_kind=RequestOutputKind.DELTA) for seed in seeds]

    def run() -> None:
        outputs = llm.generate(prompts, sampling, lora_request=lora_of, use_tqdm=False)
        assert sum(len(output.outputs[0].token_ids) for output in outputs) == workload.output_tokens

    result = measure(run, workload.output_tokens, options.repeats)
    result |= token_latencies(llm.llm_engine, prompts, streaming, lora_of)
    emit(result | {"setting": "eager" if options.eager or options.adapters else "compiled"})


def token_latencies(engine, prompts, sampling, lora_of) -> dict:
    """One more run, stepped by hand, for the arrival time of every token."""
    start = time.perf_counter()
    times = {str(i): [] for i in range(len(prompts))}
    for i, (prompt, rules, lora) in enumerate(zip(prompts, sampling, lora_of, strict=True)):
        engine.add_request(str(i), prompt, rules, lora_request=lora)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        now = time.perf_counter()
        for output in outputs:
            times[output.request_id] += [now] * len(output.outputs[0].token_ids)
    return latencies(list(times.values()), start)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--workload", default="{}", help="JSON of common.Workload")
    parser.add_argument("--adapters", nargs="*", type=Path, default=[])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--eager", action="store_true", help="no torch.compile (with LoRA vLLM never compiles on CPU)")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
