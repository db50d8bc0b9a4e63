"""What benchmarks/proof.py does within graft, one process a call; the last line of stdout is the finding as JSON.

python benchmarks/own_proof.py check  '{"base": DIR, "adapters": {NAME: DIR}, "settings": [[dtype, runner, threads]]}'
python benchmarks/own_proof.py mutate '{"base": DIR, "adapters": {NAME: DIR}, "others": {NAME: DIR}, "work": DIR}'
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from common import emit, percentiles
from safetensors.torch import load_file, save_file

import graft.hub  # noqa: F401 (before torch: it says how OpenMP's threads wait)
from graft.hub.artifact import load_artifact
from graft.hub.base import Base, load_base
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.forms import CacheRows, Form, InputRows, LowRank, Vector
from graft.hub.inspection import PROVENANCE
from graft.hub.probe import Outcome, Verdict
from graft.hub.replay import replayed
from graft.hub.stored import stored_weights
from graft.server.engine import Engine
from graft.server.options import Options
from graft.server.prover import Prover
from graft.server.requests import Finished, Request, Stream
from graft.server.sampling import Sampling, Token

Forms = tuple[Form, ...]
STREAMED, QUIET_S = 60, 8.0  # tokens of a stream; seconds that streams without company are watched
STREAMS: list[Stream] = []  # kept, since they are told apart by their ids
ZEROED = 0.01  # of the weights
RATE = 1e-5  # of the base's one step
GREEDY = Sampling(temperature=0)
_SEED = 1234


def check(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Serve each adapter in each setting: what became of its proof, made anew each time."""
    found = []
    bases: dict[str, Base] = {}
    for dtype, runner, threads in asked["settings"]:
        torch.set_num_threads(threads)
        if dtype not in bases:
            bases = {dtype: load_base(asked["base"], dtype=dtype, device="cpu")}
        with fresh_cache(), Engine(bases[dtype], asked["adapters"], options=Options(runner=runner)) as engine:
            streams = {name: engine.submit(Request((5, 6, 7, 8), name, max_tokens=2)) for name in asked["adapters"]}
            for name, stream in streams.items():
                setting = {"adapter": name, "dtype": dtype, "runner": runner, "threads": threads}
                try:
                    digest = stream.result().served.digest
                    case = next(one.case for one in engine.loader.snapshot() if one.digest == digest)
                    found.append(setting | told(case.verdict))
                except GraftError as error:
                    found.append(setting | {"outcome": "refused", "why": str(error)})
    return found


def mutate(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Change base or adapters so that only the numbers can tell, and see what their proofs say."""
    work = Path(asked["work"])
    base = load_base(asked["base"], dtype="bfloat16", device="cpu")
    found = [{"mutation": "none", **row} for row in proofs(base, asked["adapters"])]
    others = {name: load_artifact(folder, base.spec).fold(base) for name, folder in asked["others"].items()}
    for name, change in ADAPTER_MUTATIONS.items():
        rows = proofs(base, asked["adapters"], lambda kind, forms, change=change: change(forms, others[kind]))
        found += [{"mutation": name, **row} for row in rows]
    del base
    for name, change in BASE_MUTATIONS.items():
        folder = work / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(asked["base"], folder)
        change(folder)
        mutated = load_base(folder, dtype="bfloat16", device="cpu")
        adapters = {kind: matching(Path(own), work / kind, mutated) for kind, own in asked["adapters"].items()}
        found += [{"mutation": name, **row} for row in proofs(mutated, adapters)]
    shutil.rmtree(work, ignore_errors=True)
    return found


def times(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What proofs cost: seconds of the first one alone, and of streams beside them the time between tokens.

    `running`: adapters of the streams; `cold`: those that come in beside them, with their probes and without.
    """
    torch.set_num_threads(asked["threads"])
    base = load_base(asked["base"], dtype=asked["dtype"], device="cpu")
    work = Path(asked["work"])
    bare = {name: without_probe(Path(folder), work / name) for name, folder in asked["cold"].items()}
    arrivals = {"none": {}, "without probes": bare, "with probes": asked["cold"]}
    found = [{"row": "alone", **alone(base, asked["cold"])} for _ in range(asked["rounds"])]
    for _ in range(asked["rounds"]):
        found += [{"row": row, **streamed(base, asked["running"], cold)} for row, cold in arrivals.items()]
    shutil.rmtree(work, ignore_errors=True)
    return found


def alone(base: Base, adapters: Mapping[str, str]) -> dict[str, Any]:
    """One adapter, nothing else to do: the base's half computed too, and the next one, which finds it there."""
    with fresh_cache(), Engine(base, adapters) as engine:
        engine.generate([Request((5, 6, 7), max_tokens=1)])
        stored_weights(base).content  # noqa: B018 (once per state of the files)
        seconds = []
        for name in list(adapters)[:2]:
            began = time.perf_counter()
            engine.generate([Request((5, 6, 7), name, max_tokens=1)])
            seconds.append(round(time.perf_counter() - began, 3))
    return {"first_s": seconds[0], "second_s": seconds[1]}


def streamed(base: Base, running: Mapping[str, str], cold: Mapping[str, str | Path]) -> dict[str, Any]:
    """Time between tokens of requests that follow one another, one an adapter at any time, while the cold ones come in
    (where there are none: for a while)."""
    with fresh_cache(), Engine(base, {**running, **cold}) as engine:
        engine.generate([Request((5, 6, 7), name, max_tokens=1) for name in running])
        sink: SimpleQueue = SimpleQueue()
        arrived = threading.Event()
        began = time.perf_counter()
        latest: dict[int, float] = {}  # arrival of a stream's latest token
        for name in running:
            _stream(engine, name, sink)
        if cold:
            threading.Thread(target=lambda: (_ask(engine, cold), arrived.set())).start()
        gaps: list[float] = []
        while not (arrived.is_set() if cold else time.perf_counter() - began > QUIET_S):
            stream, event = sink.get()
            now = time.perf_counter()
            if isinstance(event, Token):
                gaps += [now - latest[id(stream)]] if id(stream) in latest else []
                latest[id(stream)] = now
            elif isinstance(event, Finished):
                _stream(engine, stream.request.model, sink)
        ended = time.perf_counter()
    return {"itl_ms": percentiles(gaps), "gaps": len(gaps), "seconds": round(ended - began, 3)}


def _stream(engine: Engine, name: str, sink: SimpleQueue) -> None:
    STREAMS.append(engine.submit(Request((5, 6, 7, 8), name, STREAMED, ignore_eos=True, sampling=GREEDY), sink))


def _ask(engine: Engine, names: Mapping[str, Any]) -> None:
    engine.generate([Request((5, 6, 7), name, max_tokens=1) for name in names])


def without_probe(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    provenance = json.loads((copy / PROVENANCE).read_text("utf-8"))
    del provenance["probe"]
    (copy / PROVENANCE).write_text(json.dumps(provenance))
    return copy


def proofs(
    base: Base, adapters: Mapping[str, str | Path], change: Callable[[str, Forms], Forms | None] | None = None
) -> Iterator[dict[str, Any]]:
    """The verdict of every adapter with its forms changed; none of one to which the change means nothing."""
    with fresh_cache():
        prover, verdicts = Prover(base), {}
        for kind, folder in adapters.items():
            artifact = load_artifact(folder, base.spec)
            try:
                case = prover.case(artifact)
            except ArtifactError as error:
                verdicts[kind] = Verdict(Outcome.REFUSED, str(error))
                continue
            forms = artifact.fold(base)
            forms = change(kind, forms) if change else forms
            if forms is not None:
                prover.prove(
                    replace(case, adapter=replayed(forms)), lambda verdict, kind=kind: verdicts.update({kind: verdict})
                )
        while prover.busy:
            prover.turn(1.0)
        prover.close()
    for kind, verdict in verdicts.items():
        yield {"adapter": kind, **told(verdict)}


def told(verdict: Verdict) -> dict[str, Any]:
    return {"outcome": verdict.outcome.value, "why": verdict.why, "gap": verdict.gap, "noises": verdict.noises}


class fresh_cache:
    """Nothing that was proven before is known within."""

    def __enter__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="graft-proof-")
        os.environ["GRAFT_CACHE"] = self._folder.name

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


# Changes of an adapter: (its forms, those of the same recipe from another seed) -> its forms; None: means nothing to it


def scale_doubled(forms: Forms, other: Forms) -> Forms | None:
    return _each(forms, LowRank, lambda form: replace(form, scale=form.scale * 2))


def layer_missing(forms: Forms, other: Forms) -> Forms | None:
    middle = _layers(forms) // 2
    kept = tuple(form for form in forms if _layer(form) != middle)
    cleared = _each(kept, CacheRows, lambda form: _with_layer(form, middle, torch.zeros_like))
    return cleared if cleared is not None else kept if len(kept) < len(forms) else None


def layers_swapped(forms: Forms, other: Forms) -> Forms | None:
    first, second = _layers(forms) // 3, 2 * _layers(forms) // 3
    if any(isinstance(form, CacheRows) for form in forms):
        order = list(range(_layers(forms)))
        order[first], order[second] = second, first
        return _each(forms, CacheRows, lambda form: replace(form, keys=form.keys[order], values=form.values[order]))
    if first == second or all(_layer(form) is None for form in forms):
        return None
    return tuple(_at_layer(form, {first: second, second: first}) for form in forms)


def layer_of_another_seed(forms: Forms, other: Forms) -> Forms | None:
    middle = _layers(forms) // 2
    rows = [form for form in forms if isinstance(form, InputRows)]
    if rows:  # a soft prompt has no layers: one of its rows
        (theirs,) = (form for form in other if isinstance(form, InputRows))
        return tuple(
            replace(form, rows=torch.cat([theirs.rows[:1], form.rows[1:]])) if form is rows[0] else form
            for form in forms
        )
    changed = [
        _with_layer(mine, middle, lambda _, theirs=theirs: theirs)
        if isinstance(mine, CacheRows)
        else theirs
        if _layer(mine) == middle
        else mine
        for mine, theirs in zip(forms, other, strict=True)
    ]
    return tuple(changed)


def another_activation(forms: Forms, other: Forms) -> Forms | None:
    if all(not isinstance(form, LowRank) or form.activation == "none" for form in forms):
        return None
    return _each(
        forms,
        LowRank,
        lambda form: form if form.activation == "none" else replace(form, activation="gelu" if form.activation == "relu" else "relu"),
    )  # fmt: skip


def text_start_off_by_one(forms: Forms, other: Forms) -> Forms | None:
    return _each(forms, CacheRows, lambda form: replace(form, text_start=form.text_start + 1))


def some_weights_zeroed(forms: Forms, other: Forms) -> Forms | None:
    generator = torch.Generator().manual_seed(_SEED)
    return tuple(
        replace(form, **{
            name: value * (torch.rand(value.shape, generator=generator) >= ZEROED)
            for name, value in vars(form).items()
            if isinstance(value, torch.Tensor) and value.ndim
        })
        for form in forms
    )  # fmt: skip


def nothing_left(forms: Forms, other: Forms) -> Forms | None:
    return ()


ADAPTER_MUTATIONS = {
    "scale (alpha) doubled": scale_doubled,
    "a layer missing": layer_missing,
    "two layers swapped": layers_swapped,
    "a layer (a row) of another seed": layer_of_another_seed,
    "another activation": another_activation,
    "text_start off by one": text_start_off_by_one,
    "1 % of the weights zeroed": some_weights_zeroed,
    "a no-op": nothing_left,
}


def _each(forms: Forms, kind: type, change: Callable[[Any], Form]) -> Forms | None:
    if not any(isinstance(form, kind) for form in forms):
        return None
    return tuple(change(form) if isinstance(form, kind) else form for form in forms)


def _layer(form: Form) -> int | None:
    tap = form.adds_to if isinstance(form, LowRank) else form.tap if isinstance(form, Vector) else None
    return next((int(part) for part in tap.module.split(".") if part.isdigit()), None) if tap else None


def _layers(forms: Forms) -> int:
    prefixes = [len(form.keys) for form in forms if isinstance(form, CacheRows)]
    return max([*prefixes, *(layer + 1 for form in forms if (layer := _layer(form)) is not None)], default=0)


def _with_layer(form: CacheRows, layer: int, change: Callable[[Any], Any]) -> CacheRows:
    changed = {}
    for name in ("keys", "values"):
        whole = getattr(form, name).clone()
        theirs = change(whole[layer])
        whole[layer] = getattr(theirs, name)[layer] if isinstance(theirs, CacheRows) else theirs
        changed[name] = whole
    return replace(form, **changed)


def _at_layer(form: Form, moves: Mapping[int, int]) -> Form:
    layer = _layer(form)
    if layer not in moves:
        return form

    def moved(tap):
        parts = [str(moves[layer]) if part == str(layer) else part for part in tap.module.split(".")]
        return replace(tap, module=".".join(parts))

    if isinstance(form, Vector):
        return replace(form, tap=moved(form.tap))
    return replace(form, adds_to=moved(form.adds_to), reads=tuple(map(moved, form.reads)))


# Changes of a base's folder


def trained_for_a_step(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    ids = torch.tensor([tokenizer("One step of ordinary training on one ordinary sentence.")["input_ids"]])
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)


def another_of_that_shape(folder: Path) -> None:
    """Every layer is the next one, the last one the first."""

    def changed(tensors):
        names = [name for name in tensors if ".layers." in name]
        count = 1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in names)

        def source(name):
            before, _, after = name.partition(".layers.")
            layer, _, rest = after.partition(".")
            return f"{before}.layers.{(int(layer) + 1) % count}.{rest}"

        return tensors | {name: tensors[source(name)] for name in names}

    _rewritten(folder, changed)


def rows_swapped(folder: Path) -> None:
    """The embeddings of two tokens, one of which the probe's texts use."""
    from transformers import AutoTokenizer

    used, unused = _a_used_token(AutoTokenizer.from_pretrained(folder))

    def changed(tensors):
        swapped = tensors["model.embed_tokens.weight"].clone()
        swapped[[used, unused]] = swapped[[unused, used]]
        return tensors | {"model.embed_tokens.weight": swapped}

    _rewritten(folder, changed)


def tokens_swapped(folder: Path) -> None:
    """Two entries of the tokenizer's vocabulary, one of which the probe's texts use."""
    from transformers import AutoTokenizer

    used, unused = _a_used_token(AutoTokenizer.from_pretrained(folder))
    raw = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    vocabulary = raw["model"]["vocab"]
    words = {id: word for word, id in vocabulary.items()}
    vocabulary[words[used]], vocabulary[words[unused]] = unused, used
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False), "utf-8")


BASE_MUTATIONS = {
    "the base trained on for one step": trained_for_a_step,
    "another base of that shape": another_of_that_shape,
    "two embedding rows of the base swapped": rows_swapped,
    "two tokens of the tokenizer swapped": tokens_swapped,
}


def _a_used_token(tokenizer: Any) -> tuple[int, int]:
    from graft.trainer.probe import TEXTS

    return tokenizer(TEXTS[0])["input_ids"][5], tokenizer(" zebra")["input_ids"][-1]


def _rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})


def matching(folder: Path, copy: Path, base: Base) -> Path:
    """A copy of an adapter that names the mutated base's fingerprint and content as those of its training."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    provenance = json.loads((copy / PROVENANCE).read_text("utf-8"))
    provenance["base"]["fingerprint"] = base.spec.fingerprint
    provenance["probe"]["content"] = stored_weights(base).content
    (copy / PROVENANCE).write_text(json.dumps(provenance))
    return copy


if __name__ == "__main__":
    emit({"found": {"check": check, "mutate": mutate, "times": times}[sys.argv[1]](json.loads(sys.argv[2]))})
