"""One measurement of transformers' `generate` (no adapter) or PEFT (one LoRA, or a mixed batch), as JSON.

Run by the tables' scripts; imports nothing of graft. `--adapters` takes LoRA folders: none is the bare model, one is
PEFT's active adapter for all requests, several are a mixed batch, request i on adapter i mod their number.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.lib.common import Workload, emit, latencies, measure, seconds_of

SETTINGS = [f"{attention}/{cache}" for attention in ("eager", "sdpa") for cache in ("static", "dynamic")]


class Clock(transformers.StoppingCriteria):
    """Stops nothing; notes when each step's tokens were there."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def main() -> None:
    options = arguments()
    torch.set_grad_enabled(False)
    workload = Workload.from_json(options.workload)
    dtype = getattr(torch, workload.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.base, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    model, extra = with_adapters(model, options.adapters, workload.requests)
    prompts = torch.tensor(workload.prompts())

    def generate(cache: str, tokens: int) -> Clock:
        clock = Clock()
        out = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            cache_implementation=cache,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
            **extra,
        )
        assert out.shape[1] == workload.prompt_tokens + tokens, out.shape
        return clock

    attention, cache = best_setting(model, generate, workload.new_tokens // 4, options.settings)
    clocks: list[Clock] = []
    result = measure(
        lambda: clocks.append(generate(cache, workload.new_tokens)), workload.output_tokens, options.repeats
    )
    result |= latencies([clocks[-1].times], clocks[-1].start)
    emit(result | {"setting": f"{attention} attention, {cache} cache"})


def best_setting(model: Any, generate: Callable[[str, int], Any], tokens: int, settings: list[str]) -> tuple[str, str]:
    """The fastest (attention, cache) in a short trial; the model is left with that attention."""
    pairs = [(attention, cache) for attention, cache in (setting.split("/") for setting in settings)]
    seconds = {}
    for attention, cache in pairs if len(pairs) > 1 else []:
        model.set_attn_implementation(attention)
        generate(cache, 2)
        seconds[attention, cache] = seconds_of(lambda cache=cache: generate(cache, tokens))
    best = min(seconds, key=seconds.__getitem__) if seconds else pairs[0]
    model.set_attn_implementation(best[0])
    return best


def with_adapters(model: Any, folders: list[Path], requests: int) -> tuple[Any, dict[str, Any]]:
    """The model with its LoRAs in their own dtype (PEFT would widen them to float32), generate's extra arguments."""
    if not folders:
        return model, {}
    from peft import PeftModel

    names = [f"adapter{i}" for i in range(len(folders))]
    model = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0], autocast_adapter_dtype=False)
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
    extra = {"adapter_names": [names[i % len(names)] for i in range(requests)]} if len(names) > 1 else {}
    return model.eval(), extra


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--workload", default="{}", help="JSON of common.Workload")
    parser.add_argument("--adapters", nargs="*", type=Path, default=[])
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help="attention/cache; of several, the fastest")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
