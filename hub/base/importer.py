"""Bringing a base in: GGUF files, folders and hub ids become one plain safetensors folder.

The folder is written under a temporary name and renamed when it is whole, so an interrupted import leaves
nothing that looks like a base.
"""

import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from graft.hub.base.manifest import BaseSpec, record, require_no_adapter
from graft.hub.base.model import DTYPES, load_base, with_id
from graft.hub.errors import BaseModelError, GraftError
from graft.hub.machine.output_folder import claim, room_at


def import_base(
    source: str | Path, folder: str | Path, base_id: str, *, gguf_file: str | None = None, dtype: str = "bfloat16"
) -> BaseSpec:
    """Write `source` to `folder` as safetensors with its id and manifest beside it; returns the manifest.

    `source` is a .gguf file, a folder that holds one (`gguf_file` where there are several), a safetensors
    folder, or a hub id. Raises BaseModelError when it can't be read, GraftError
    when `folder` is taken or can't be written.
    """
    source, folder = Path(source), Path(folder)
    if dtype not in DTYPES:
        raise BaseModelError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
    source, gguf_file = _locate(source, gguf_file)
    require_no_adapter(source)
    claim(folder)
    temporary = folder.with_name(folder.name + ".importing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if gguf_file is None:
            loaded = load_base(source, dtype=dtype, device="cpu")
            model, tokenizer = loaded.model, loaded.tokenizer
            assert tokenizer is not None  # a base from a folder or a hub has one
        else:
            model, tokenizer = _load_gguf(source, gguf_file, dtype)
        _require_room(model, folder)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        del model
        # Described as anyone will load it, so that the recorded fingerprint is the one they will compute.
        spec = load_base(temporary, dtype=dtype, device="cpu").spec
        record(temporary, with_id(spec, base_id))
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except SafetensorError as error:  # how its writer tells of a disk that others fill meanwhile
        raise GraftError(f"{folder} can't be written: {error}. Make room or choose another folder.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return with_id(spec, base_id)


def _locate(source: Path, gguf_file: str | None) -> tuple[Path, str | None]:
    """The folder (or hub id) and, for GGUF, the file's name in it."""
    if source.suffix == ".gguf":
        if not source.is_file():
            raise BaseModelError(f"There is no file {source}.")
        return source.parent, source.name
    if source.is_dir() and gguf_file is None:
        gguf_names = sorted(path.name for path in source.glob("*.gguf"))
        if len(gguf_names) > 1:
            raise BaseModelError(
                f"{source} holds several GGUF files; name one with --gguf-file: {', '.join(gguf_names)}."
            )
        if gguf_names and not (source / "config.json").exists():
            return source, gguf_names[0]
    if gguf_file is not None and source.is_dir() and not (source / gguf_file).is_file():
        raise BaseModelError(f"{source} holds no file {gguf_file}.")
    return source, gguf_file


def _require_room(model: PreTrainedModel, folder: Path) -> None:
    """Raises GraftError where the disk is too full for the weights."""
    needed = sum(weight.nbytes for weight in model.parameters())
    disk, free = room_at(folder)
    if needed > free:
        raise GraftError(
            f"{disk} has {free >> 20} MiB left, and the imported base takes {-(-needed >> 20)} MiB there. "
            f"Make room or choose another folder."
        )


def _load_gguf(folder: Path, name: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    transformers_logging.set_verbosity_error()  # it warns that `dtype` is not float32, which is what is wanted here
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=DTYPES[dtype])
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BaseModelError(f"Can't read the GGUF file {folder / name}: {error}") from error
    # transformers marks the de-quantised model as quantised, which can't be saved: keep the values only.
    settings = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings), dtype=DTYPES[dtype])
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain, tokenizer
