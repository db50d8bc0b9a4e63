"""What benchmarks/tables/proof.py changes, so that only the numbers can tell: an adapter's forms, or the folder of its base."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters.serving_forms import CacheRows, Form, InputRows, LowRank, Vector

Forms = tuple[Form, ...]
ZEROED = 0.01  # of the weights
RATE = 1e-5  # of the base's one step
_SEED = 1234

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
    from graft.trainer.artifact.probe import TEXTS

    return tokenizer(TEXTS[0])["input_ids"][5], tokenizer(" zebra")["input_ids"][-1]


def _rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path, metadata={"format": "pt"})
