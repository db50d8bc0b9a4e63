"""Training speed and memory: ours and `peft`, on the same base, batch, dtype and data, in turns.

    python benchmarks/trainer.py --base DIR [--rounds 3] [--steps 3] [--out benchmarks/results/trainer.json]

Three tables: one LoRA (r=8, all linears) of 8 x 128 tokens; 8 LoRAs of 2 x 64 tokens each, at once against 8 `peft`
runs one after another; and our peak memory against the number of adapters. Every measurement is a process of its own
(so that its memory is), the sides alternate, the best of the rounds counts, and the load of everything else is
reported beside it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from common import Load

LEARNED = 8  # completion tokens of each sequence
RANK = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=("ours", "peft"), help=argparse.SUPPRESS)
    parser.add_argument("--adapters", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--length", type=int, default=128, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure = {"ours": measure_ours, "peft": measure_peft}[options.side]
        print(json.dumps(measure(options)))
        return
    report = {
        "one": sides(options, batch=8, length=128, adapters=1),
        "eight": sides(options, batch=2, length=64, adapters=8),
        "memory": [best(options, "ours", batch=2, length=64, adapters=n) for n in (1, 2, 4, 8)],
    }
    print(as_markdown(report))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2))


def sides(options, **sizes) -> dict:
    """Both sides in turns; the best of the rounds of each."""
    rounds = [{side: once(options, side, **sizes) for side in ("peft", "ours")} for _ in range(options.rounds)]
    return {side: min((r[side] for r in rounds), key=lambda row: row["seconds"]) for side in ("peft", "ours")}


def best(options, side: str, **sizes) -> dict:
    return min((once(options, side, **sizes) for _ in range(options.rounds)), key=lambda row: row["seconds"])


def once(options, side: str, *, batch: int, length: int, adapters: int) -> dict:
    command = [sys.executable, __file__, "--base", options.base, "--dtype", options.dtype, "--side", side]
    command += ["--steps", str(options.steps), "--batch", str(batch), "--length", str(length)]
    command += ["--adapters", str(adapters)]
    load = Load()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), **load.cores()}


def measure_ours(options) -> dict:
    import torch

    from graft.hub.base import load_base
    from graft.hub.methods import METHODS
    from graft.trainer.config import RunConfig, TrainConfig
    from graft.trainer.data import Sequence
    from graft.trainer.loop import train_step
    from graft.trainer.memory import peak_bytes, restart_peak
    from graft.trainer.trainee import Trainee

    base = load_base(options.base, dtype=options.dtype)
    method = METHODS["lora"]
    recipe = TrainConfig(batch_size=options.batch, steps=100)
    learners = []
    for seed in range(options.adapters):
        draw = torch.Generator().manual_seed(seed)
        ids = torch.randint(1000, base.spec.vocab_size, (options.batch, options.length), generator=draw).tolist()
        sequences = [Sequence(tuple(row), options.length - LEARNED) for row in ids]
        config = method.from_options({"r": str(RANK)}, base.spec)
        learners.append(Trainee(f"a{seed}", method, config, recipe, sequences, [], base))
    run = RunConfig()
    train_step(base, learners, run)
    restart_peak(base.device)
    seconds = timed(lambda: train_step(base, learners, run), options.steps, base.device)
    return row(options, "graft", seconds, peak_bytes(base.device))


def measure_peft(options) -> dict:
    """`peft` with a plain loop; several adapters are trained one after another, as its users do."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from graft.trainer.memory import peak_bytes, restart_peak

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = AutoModelForCausalLM.from_pretrained(options.base, dtype=getattr(torch, options.dtype)).to(device)
    config = LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    draw = torch.Generator().manual_seed(0)
    shape = (options.batch, options.length)
    ids = torch.randint(1000, base.config.vocab_size, shape, generator=draw).to(device)
    labels = ids.clone()
    labels[:, :-LEARNED] = -100

    def step():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    restart_peak(device)
    one_after_another = options.steps * options.adapters
    seconds = timed(step, one_after_another, device) * options.adapters
    return row(options, "peft", seconds, peak_bytes(device))


def timed(step, count: int, device) -> float:
    """The fastest of `count` steps, in seconds."""
    import torch

    found = []
    for _ in range(count):
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - started)
    return min(found)


def row(options, name: str, seconds: float, peak: int) -> dict:
    tokens = options.adapters * options.batch * options.length
    return {
        "system": name,
        "adapters": options.adapters,
        "batch": options.batch,
        "length": options.length,
        "dtype": options.dtype,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_bytes": peak,
    }


def as_markdown(report: dict) -> str:
    lines = ["| training | system | s/step | tok/s | peak GiB | other load (cores) |", "|---|---|--:|--:|--:|--:|"]
    for title, key in (("1 LoRA, 8 x 128", "one"), ("8 LoRAs, 2 x 64 each", "eight")):
        rows = report[key]
        lines += [_line(title, rows[side]) for side in ("peft", "ours")]
        ratio = rows["ours"]["tokens_per_s"] / rows["peft"]["tokens_per_s"]
        memory = rows["ours"]["peak_bytes"] / rows["peft"]["peak_bytes"]
        lines.append(f"| {title} | graft / peft | | {ratio:.2f}x | {memory:.2f}x | |")
    lines += [_line(f"{row['adapters']} LoRAs, 2 x 64 each", row) for row in report["memory"]]
    return "\n".join(lines)


def _line(title: str, row: dict) -> str:
    peak = row["peak_bytes"] / 2**30
    return (
        f"| {title} | {row['system']} | {row['seconds']:.2f} | {row['tokens_per_s']:,.0f} | {peak:.2f} | "
        f"{row['other_cores']} |"
    )


if __name__ == "__main__":
    main()
