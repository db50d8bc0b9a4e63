"""Trains one PEFT adapter in a plain loop on given batches and saves it with save_pretrained; its losses as JSON.

AdamW, gradients cut to norm 1, a rate that rises and then falls as a cosine; adapter weights in float32 beside a base
of any dtype, as PEFT makes them. Imports nothing of graft. `--batches`: JSON, one list of {"ids", "answer_start"} a step.
"""

import argparse
import json
import math
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, initialize_kv_prefix_from_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.lib.common import emit


def main() -> None:
    options = arguments()
    torch.manual_seed(options.seed)
    base = AutoModelForCausalLM.from_pretrained(options.base, dtype=getattr(torch, options.dtype))
    model = get_peft_model(base, PeftConfig.from_peft_type(**json.loads(options.config) | {"inference_mode": False}))
    if options.start_text:
        tokenizer = AutoTokenizer.from_pretrained(options.base)
        initialize_kv_prefix_from_text(model, tokenizer, text=options.start_text, use_chat_template=False)
    with open(options.batches) as file:
        losses = train(model, [tensors_of(batch) for batch in json.load(file)], options.rate, options.warmup)
    model.save_pretrained(options.out)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    emit({"losses": losses, "parameters": trained})


def train(model: Any, batches: list[dict[str, torch.Tensor]], rate: float, warmup: float) -> list[float]:
    """The loss of every step."""
    model.train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    total, warm = len(batches), math.ceil(warmup * len(batches))

    def factor(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def tensors_of(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Padded on the right; the loss is on the ids from `answer_start` on."""
    width = max(len(sequence["ids"]) for sequence in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sequence in enumerate(batch):
        length, start = len(sequence["ids"]), sequence["answer_start"]
        ids[row, :length] = torch.tensor(sequence["ids"])
        mask[row, :length] = 1
        labels[row, start:length] = ids[row, start:length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--batches", required=True, help="JSON file, one list of sequences a step")
    parser.add_argument("--config", required=True, help="adapter_config.json as text")
    parser.add_argument("--rate", type=float, required=True, help="peak learning rate")
    parser.add_argument("--warmup", type=float, required=True, help="fraction of the steps with a rising rate")
    parser.add_argument("--start-text", help="text whose keys and values a prefix starts from")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
