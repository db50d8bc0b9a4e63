"""All rows of one system on a GPU, as one JSON object {row: sample}: graft's runners, or PEFT's mixed batch.

The base is Llama-shaped with random weights, made on the device: speed and memory, not quality. Peer and graft get the same
prompts, the same LoRAs in the same dtype and as many new tokens; each row is warmed up by one run of itself.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.lib import adapters
from benchmarks.lib.common import Workload, emit, seconds_of
from benchmarks.lib.harness import CACHE
from benchmarks.lib.shapes import SIZES
from graft.hub.base.model import Base
from graft.server.engine.engine import Engine
from graft.server.engine.options import Options
from graft.server.engine.request import Request
from graft.server.sampling.params import Sampling

DEVICE = torch.device("cuda")
LORAS = 32
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(),
    "top-p": Sampling(top_p=0.95),
    "logprobs": Sampling(logprobs=5),
}


@dataclass(frozen=True)
class Row:
    """`kinds`: of the adapters, that requests take in turns; none: the bare base."""

    name: str
    requests: int
    kinds: tuple[str, ...] = ()
    sampling: str = "greedy"
    prompt_tokens: int = 64


ROWS = (
    Row("base @1", 1),
    Row("base @32", 32),
    Row("base @128", 128),
    Row("32 LoRAs @32", 32, ("lora-r16",)),
    Row("32 LoRAs @128", 128, ("lora-r16",)),
    Row("six kinds @32", 32, adapters.SIX_KINDS),
    Row("32 LoRAs @32, sampled", 32, ("lora-r16",), "sampled"),
    Row("32 LoRAs @32, top-p", 32, ("lora-r16",), "top-p"),
    Row("32 LoRAs @32, logprobs", 32, ("lora-r16",), "logprobs"),
    Row("32 LoRAs @32, context 1024", 32, ("lora-r16",), "greedy", 1024),
)


def main() -> None:
    options = arguments()
    torch.set_grad_enabled(False)
    base = random_base(options.size)
    wanted = [row for row in ROWS if row.name in (options.rows or [row.name])]
    shelf = {kinds: adapters.make_for(kinds, LORAS, base.spec, CACHE) for kinds in {r.kinds for r in wanted if r.kinds}}
    samples = SYSTEMS[options.system](base, shelf, options)
    memory = torch.cuda.max_memory_allocated(DEVICE)
    emit({"device": torch.cuda.get_device_name(DEVICE), "peak_device_bytes": memory, "rows": samples})


def random_base(size: str) -> Base:
    shape = SIZES[size]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=4096,
    )
    with DEVICE:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return Base(model.eval(), no_tokenizer(), f"bench/llama-{size}")


def no_tokenizer() -> PreTrainedTokenizerFast:
    """A base has one; requests here are token ids."""
    words = models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="<s>", eos_token="</s>")


def workload_of(row: Row, new_tokens: int) -> Workload:
    return Workload(requests=row.requests, prompt_tokens=row.prompt_tokens, new_tokens=new_tokens)


def run_graft(runner: str) -> Callable[..., dict[str, Any]]:
    def run(base: Base, shelf: dict[tuple[str, ...], list[Path]], options: argparse.Namespace) -> dict[str, Any]:
        folders = {f"{kinds[0]}-{i}": folder for kinds, made in shelf.items() for i, folder in enumerate(made)}
        names = {kinds: [f"{kinds[0]}-{i}" for i in range(len(made))] for kinds, made in shelf.items()}
        gib = 1 << 30
        sizes = Options(
            runner=runner, max_running=128, host_bytes=24 * gib, device_bytes=24 * gib, cache_bytes=16 * gib
        )
        with Engine(base, folders, options=sizes) as engine:
            return measured(options, lambda row: serve(engine, row, names.get(row.kinds, [None]), options.new_tokens))

    return run


def run_in_turn(base: Base, shelf: dict[tuple[str, ...], list[Path]], options: argparse.Namespace) -> dict[str, Any]:
    """Each step waits for the one before it."""
    from graft.server.runners.cuda.runner import GroupedRunner

    GroupedRunner.begins_early = False
    return run_graft("fast")(base, shelf, options)


def serve(engine: Engine, row: Row, models: Sequence[str | None], new_tokens: int) -> Callable[[], object]:
    work = workload_of(row, new_tokens)
    asked = [
        Request(tuple(prompt), models[i % len(models)], new_tokens, ignore_eos=True, sampling=SAMPLINGS[row.sampling])
        for i, prompt in enumerate(work.prompts())
    ]
    return lambda: engine.generate(asked)


def run_peft(base: Base, shelf: dict[tuple[str, ...], list[Path]], options: argparse.Namespace) -> dict[str, Any]:
    """PEFT on transformers' generate: rows without adapters, and with LoRAs only, greedy; the rest it can't mix."""
    from peft import PeftModel

    model: PreTrainedModel = base.model
    model.set_attn_implementation("sdpa")
    model.generation_config.eos_token_id = None
    plain = measured(options, lambda row: generate(model, row, {}, options.new_tokens), lambda row: not row.kinds)
    names = [f"a{i}" for i in range(LORAS)]
    folders = shelf["lora-r16",]
    tuned = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0], autocast_adapter_dtype=False)
    for name, folder in zip(names[1:], folders[1:], strict=True):
        tuned.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)

    def mixed(row: Row) -> Callable[[], object]:
        return generate(
            tuned, row, {"adapter_names": [names[i % LORAS] for i in range(row.requests)]}, options.new_tokens
        )

    return plain | measured(options, mixed, lambda row: row.kinds == ("lora-r16",) and row.sampling == "greedy")


def generate(model: Any, row: Row, extra: dict[str, Any], new_tokens: int) -> Callable[[], object]:
    prompts = torch.tensor(workload_of(row, new_tokens).prompts(), device=DEVICE)
    return lambda: model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        **extra,
    )


def measured(
    options: argparse.Namespace,
    prepare: Callable[[Row], Callable[[], object]],
    takes: Callable[[Row], bool] = lambda row: True,
) -> dict[str, Any]:
    samples: dict[str, Any] = {}
    for row in ROWS:
        if not takes(row) or row.name not in (options.rows or [row.name]):
            continue
        run = prepare(row)
        try:
            warm_up = seconds_of(run)
            seconds = sorted(seconds_of(run) for _ in range(options.repeats))
        except Exception as error:  # one row that fails leaves the others
            samples[row.name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            continue
        tokens = row.requests * options.new_tokens
        samples[row.name] = {
            "tokens_per_s": round(tokens / statistics.median(seconds), 1),
            "seconds": [round(s, 4) for s in seconds],
            "warm_up_s": round(warm_up, 2),
        }
        print(row.name, samples[row.name], file=sys.stderr, flush=True)
    return samples


SYSTEMS = {
    "graft": run_graft("fast"),
    "graft in turn": run_in_turn,
    "graft eager": run_graft("eager"),
    "peft": run_peft,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=SYSTEMS, required=True)
    parser.add_argument("--size", choices=SIZES, default="1.7")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", nargs="*", default=[], help="default: all")
    return parser.parse_args()


if __name__ == "__main__":
    main()
