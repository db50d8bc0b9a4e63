"""One measurement of training with PEFT (or all weights with transformers alone) in a plain loop, as JSON.

AdamW; LoRA weights in float32 beside a base of any dtype, as PEFT makes them. `--adapters N` trains N LoRAs one after
another. Imports nothing of graft. Examples: JSONL of prompt and completion; the loss is on the completions.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.lib.common import Load, emit, peak_tree_bytes, seconds_of, training_figures


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    batches = batches_of(options)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=getattr(torch, options.dtype))
    load, seconds = Load(), []
    for number in range(options.adapters):
        model = trainable(model, options.targets, number)
        seconds += train(model, batches)
    tokens = batches[0]["input_ids"].numel()
    emit(training_figures(seconds, tokens, len(batches)) | load.cores() | {"peak_bytes": peak_tree_bytes()})


def trainable(model: Any, targets: str, number: int) -> Any:
    """The model with a fresh LoRA r=8 active; "all-weights": the model itself."""
    if targets == "all-weights":
        return model
    from peft import LoraConfig, PeftModel, get_peft_model

    modules = "all-linear" if targets == "all-linear" else targets.split(",")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
    if not isinstance(model, PeftModel):
        return get_peft_model(model, config)
    model.add_adapter(str(number), config)
    model.set_adapter(str(number))
    return model


def train(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Seconds of every step."""
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return [seconds_of(lambda batch=batch: step(batch)) for batch in batches]


def batches_of(options: argparse.Namespace) -> list[dict[str, torch.Tensor]]:
    """Examples of one length, in the file's order; labels only on the completion and its EOS."""
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    ids, labels = [], []
    for line in options.data.read_text().splitlines():
        example = json.loads(line)
        prompt = tokenizer.encode(example["prompt"], add_special_tokens=False)
        answer = [*tokenizer.encode(example["completion"], add_special_tokens=False), tokenizer.eos_token_id]
        ids.append(prompt + answer)
        labels.append([-100] * len(prompt) + answer)
    size = options.batch_size
    starts = range(0, min(len(ids), options.steps * size), size)
    return [
        {"input_ids": torch.tensor(ids[i : i + size]), "labels": torch.tensor(labels[i : i + size])} for i in starts
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--targets", required=True, help="module names, all-linear, or all-weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--adapters", type=int, default=1, help="trained one after another")
    return parser.parse_args()


if __name__ == "__main__":
    main()
