"""What the golden values are of: bases, adapters and a registry whose every number comes from integer arithmetic.

Nothing here is drawn at random or computed in an order that a machine may choose, so the values are the same anywhere.
`python -m tests.golden.made` writes golden.json anew, and nothing else does: only for a change that is meant.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from graft.hub.adapters.methods import METHODS
from graft.hub.adapters.validation import inspect_artifact
from graft.hub.base.manifest import BaseSpec
from graft.hub.base.model import Base
from graft.hub.evaluation.task_data import data_hash, parse_examples
from graft.hub.registry.commits.changes import Delete, Put
from graft.hub.registry.leaderboard import Evaluation
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage import timestamps
from tests.conftest import FAMILIES, tiny_tokenizer
from tests.hub.adapters.methods.cases import VARIANTS

HERE = Path(__file__).parent
GOLDEN = HERE / "golden.json"
MADE_BY = "d45ab6d"  # the commit whose registry is kept
DUMP = HERE / f"registry-{MADE_BY}.sql"
BLOBS = HERE / f"registry-{MADE_BY}.blobs.json"
KNUTH = 2654435761
DIGEST_FAMILIES = ("llama", "gpt2", "gemma2")  # plain; Conv1D and learned positions; norms after the sublayers


def values(shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """float32 values of about +-0.25 that no rounding mode touches: whole numbers over a power of two."""
    count = int(np.prod(shape))
    numbers = (np.arange(1 + salt * 7919, 1 + salt * 7919 + count, dtype=np.int64) * KNUTH % 2003) - 1001
    return (numbers.astype(np.float32) / np.float32(4096)).reshape(shape)


def base(family: str) -> Base:
    """A tiny base of `family`; its weights are `values`."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES[family]), dtype=torch.float32)
    with torch.no_grad():
        for salt, (_, parameter) in enumerate(sorted(model.named_parameters())):
            parameter.copy_(torch.from_numpy(values(tuple(parameter.shape), salt)))
    return Base(model.eval(), tiny_tokenizer(), id=f"golden/{family}")


def fingerprints() -> dict[str, str]:
    return {family: base(family).spec.fingerprint for family in FAMILIES}


# Configs as other libraries write them, each with tensors for the llama base.
FOREIGN: dict[str, dict[str, Any]] = {
    "PEFT's first": {
        "base_model_name_or_path": "golden/llama", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
        "init_lora_weights": True, "lora_alpha": 16, "lora_dropout": 0.05, "modules_to_save": None, "peft_type": "LORA",
        "r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
    },
    "PEFT with a pattern": {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/llama", "r": 2, "lora_alpha": 3,
        "target_modules": r".*\.1\..*(up|down)_proj", "use_rslora": True, "bias": "none", "lora_dropout": 0.0,
        "peft_version": "0.18.0", "revision": None, "layer_replication": None, "eva_config": None, "use_qalora": False,
    },
    "PEFT in one layer": {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "golden/llama", "r": 2, "lora_alpha": 2,
        "target_modules": ["k_proj"], "layers_to_transform": [1], "layers_pattern": "layers", "bias": "none",
        "rank_pattern": {"k_proj": 3}, "alpha_pattern": {},
    },
}  # fmt: skip


def adapter(folder: Path, method: str, config: Any, raw: Mapping[str, Any], spec: BaseSpec, salt: int = 0) -> Path:
    """An adapter's folder with `values` in every tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = METHODS[method].shapes(config, spec)
    names = {name: METHODS[method].file_name(config, spec, name) for name in shapes}
    tensors = {names[name]: values(shape, salt + i) for i, (name, shape) in enumerate(sorted(shapes.items()))}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(raw, sort_keys=False))
    return folder


def digests() -> dict[str, str]:
    """By family and variant, as graft writes them; and of foreign configs."""
    found = {}
    with TemporaryDirectory() as folder:
        for family in DIGEST_FAMILIES:
            spec = base(family).spec
            for variant, (name, options) in VARIANTS.items():
                config = METHODS[name].from_options(options(spec) if callable(options) else options, spec)
                made = adapter(Path(folder, family, variant), name, config, METHODS[name].write(config, spec), spec)
                found[f"{family}/{variant}"] = inspect_artifact(made, spec).digest
        spec = base("llama").spec
        for title, raw in FOREIGN.items():
            made = adapter(Path(folder, title), "lora", METHODS["lora"].read(raw, {}), raw, spec)
            found[title] = inspect_artifact(made, spec).digest
    return found


DATA = b"""{"prompt": "The keeper saved a penalty.", "completion": "sport", "labels": ["sport", "money"]}
{"prompt": "Shares fell by a tenth.", "completion": "money", "labels": ["sport", "money"]}
{"messages": [{"role": "user", "content": "Gr\\u00fc\\u00dfe?"}, {"role": "assistant", "content": "Hello."}]}
"""


def hashed_fields() -> dict[str, list[str]]:
    """method -> the fields of its config that enter every digest, whatever their value."""
    return {
        name: sorted(f.name for f in fields(method.Config) if not f.metadata.get("training_only") and not f.metadata.get("later"))
        for name, method in METHODS.items()
    }  # fmt: skip


def data_hashes() -> dict[str, str]:
    return {"examples": data_hash(parse_examples(DATA, "golden"))}


class Clock:
    """Stands in for `datetime`: a second a look."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def now(self, zone: Any) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


SPEC_MODULES = {
    f"model.layers.0.self_attn.{part}": {"kind": "linear", "in_features": 8, "out_features": 8, "bias": False}
    for part in ("q_proj", "k_proj", "v_proj", "o_proj")
}
SPEC = {
    "id": "golden/small", "fingerprint": "5" * 64, "model_type": "llama", "hidden_size": 8, "num_layers": 1, "num_heads": 2,
    "num_kv_heads": 2, "head_dim": 4, "vocab_size": 32, "max_positions": 64, "learned_positions": False, "rotary": True,
    "parallel_residual": False, "norm_first": True, "parameters": 1000, "modules": SPEC_MODULES,
}  # fmt: skip


def small_spec() -> BaseSpec:
    return BaseSpec.from_json(json.dumps(SPEC))


def small_folder(folder: Path, salt: int, *, base: str = "golden/small", metric: str = "") -> Path:
    """A LoRA of 32 numbers with card and provenance."""
    raw = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": 2, "lora_alpha": 4,
        "target_modules": ["q_proj"], "bias": "none",
    }  # fmt: skip
    adapter(folder, "lora", METHODS["lora"].read(raw, {}), raw, small_spec(), salt)
    provenance = {"base": {"id": base, "fingerprint": SPEC["fingerprint"]}, "made_by": "the golden test"}
    (folder / "graft.json").write_text(json.dumps(provenance))
    card = (
        f"---\nbase_model: {base}\nlicense: apache-2.0\nlibrary_name: peft\ntags:\n- lora\n- task:topics\n{metric}---\n"
        f"# Topics {salt}\n\nTells sport from money.\n"
    )
    (folder / "README.md").write_text(card)
    return folder


CLAIM = """model-index:
- name: topics
  results:
  - task: {type: text-classification, name: topics}
    dataset: {name: headlines, type: headlines, revision: "1"}
    metrics:
    - {type: accuracy, value: 0.75}
"""


def registry(folder: Path, at: Clock) -> Registry:
    """Repos, revisions, branches, tags, aliases and their moves, scores, a task; `at` is set as the clock meanwhile."""
    kept, timestamps.datetime = timestamps.datetime, at  # type: ignore[misc, assignment]
    try:
        made = Registry(folder / "registry.db")
        made.add_base(small_spec(), user="ann")
        task = made.add_task("topics", "accuracy", DATA, "Sport or money", user="ann")
        first = made.publish(
            small_folder(folder / "1", 1), "ann/topics", tags=["v1"], user="ann", message="First\n\nTry."
        )
        second = made.publish(small_folder(folder / "2", 2, metric=CLAIM), "ann/topics", user="bob")
        made.create_ref("ann/topics", "branch", "try", "v1", user="bob")
        card = made.blobs.put_bytes(b"---\ntags: [task:topics]\n---\n# Another card\n")
        puts = [Put("README.md", card), Delete("graft.json")]
        made.commit("ann/topics", puts, title="A card", user="bob", branch="try", parent=first.id)
        for ref, why in (("ann/topics@v1", "safe"), ("ann/topics", "better"), ("ann/topics@try", "newest")):
            made.promote(ref, "production", who="ann", why=why)
        made.rollback("ann/topics", "production", who="ann")
        made.publish(small_folder(folder / "local", 3, base="/data/bases/small"), "bob/local", user="bob", private=True)
        made.publish(small_folder(folder / "4", 4), "bob/gone", user="bob")
        made.delete_repo("bob/gone", user="bob")
        made.publish(small_folder(folder / "5", 5), "bob/old-name", user="bob")
        made.move_repo("bob/old-name", "bob/new-name", user="bob")
        score = dict(task="topics", data_hash=task.data_hash, metric="accuracy", n=3, engine="golden")
        for measured in (
            Evaluation(**score, value=0.5, base_fingerprint=SPEC["fingerprint"]),
            Evaluation(**score, value=2 / 3, low=0.2, high=0.9, repo="ann/topics", revision=first.id),
            Evaluation(**score, value=1.0, low=0.4, high=1.0, repo="ann/topics", revision=second.id, seconds=1.5),
        ):
            made.record_evaluation(measured, user="ann")
        made.count_download("ann/topics")
    finally:
        timestamps.datetime = kept  # type: ignore[misc]
    return made


def summary(registry: Registry) -> dict[str, Any]:
    """What a registry says of itself that must stay: ids, digests, names that move, trees, scores."""
    rows = registry.db.execute(
        "SELECT namespace || '/' || name FROM repos WHERE deleted_at IS NULL AND moved_to IS NULL ORDER BY 1"
    )
    repos = [row[0] for row in rows.fetchall()]
    return {name: _repo(registry, name) for name in repos}


def _repo(registry: Registry, name: str) -> dict[str, Any]:
    line = registry.revisions(name)
    return {
        "revisions": [[found.id, found.digest, found.title, found.author] for found in line],
        "tree": registry.tree(line[0].id),
        "refs": sorted([ref.kind, ref.name, ref.revision] for ref in registry.all_refs(name)),
        "history": [[move.kind, move.name, move.new, move.who, move.why] for move in registry.history(name)],
        "evaluations": [
            [score.value, score.low, score.high, score.source, score.revision, score.digest]
            for score in registry.evaluations(name)
        ],
        "base": [line[0].base_id, line[0].base_fingerprint],
    }


def golden() -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        kept = summary(registry(Path(folder), Clock()))
    return {
        "fingerprints": fingerprints(),
        "digests": digests(),
        "fields": hashed_fields(),
        "data": data_hashes(),
        "registry": kept,
    }


def written(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _dump(registry: Registry) -> Iterator[str]:
    """The tables as SQL; the full-text index as its rows, since its own tables can't be read back as text."""
    connection, index = registry.db.conn, "texts"
    for line in connection.iterdump():
        if f'"{index}' not in line and f"'{index}" not in line and "writable_schema" not in line:
            yield line.replace("COMMIT;", "")
    yield connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", [index]).fetchone()[0] + ";"
    for row in connection.execute(f"SELECT rowid, name, labels, card FROM {index} ORDER BY rowid"):
        cells = ", ".join(connection.execute("SELECT quote(?)", [cell]).fetchone()[0] for cell in row)
        yield f"INSERT INTO {index} (rowid, name, labels, card) VALUES ({cells});"
    yield "COMMIT;"


def keep_registry() -> None:
    """Write the registry as text: its tables as SQL, its blobs in base64."""
    with TemporaryDirectory() as folder:
        made = registry(Path(folder), Clock())
        DUMP.write_text("\n".join(_dump(made)) + "\n")
        blobs = {name: base64.b64encode(made.blobs.read(name)).decode() for name in sorted(made.blobs.names())}
        BLOBS.write_text(written(blobs))


if __name__ == "__main__":
    GOLDEN.write_text(written(golden()))
    if not DUMP.exists():  # a registry of another commit is another file
        keep_registry()
