"""The model card of a trained adapter: YAML that hubs index, then text that a person can use. Torch-free."""

from collections.abc import Mapping
from typing import Any

import yaml

from graft.hub.adapters.methods import Method
from graft.hub.base.manifest import BaseSpec


def model_card(
    name: str, method: Method, config: object, task: str, provenance: Mapping[str, Any], spec: BaseSpec
) -> str:
    """README.md of an artifact with the given provenance (graft.json)."""
    front = yaml.safe_dump(
        _front_matter(name, method, config, task, provenance, spec), sort_keys=False, allow_unicode=True
    )
    return f"---\n{front}---\n\n{_text(name, method, config, task, provenance, spec)}"


def _front_matter(
    name: str, method: Method, config: object, task: str, provenance: Mapping[str, Any], spec: BaseSpec
) -> dict[str, object]:
    front: dict[str, object] = {
        "base_model": spec.id or provenance["base"]["id"],
        "base_model_relation": "adapter",
        "library_name": method.library(config),
        "pipeline_tag": "text-generation",
        "tags": ["graft", method.name, f"task:{task}"],
        "datasets": [task],
    }
    score = provenance["metrics"].get("score")
    if score:
        front["metrics"] = [score["metric"]]
        front["model-index"] = [
            {
                "name": name,
                "results": [
                    {
                        "task": {"type": "text-generation", "name": task},
                        "dataset": {"name": task, "type": task, "revision": provenance["data"]["eval"]["hash"]},
                        "metrics": [{"type": score["metric"], "value": round(score["value"], 4)}],
                    }
                ],
            }
        ]
    return {key: value for key, value in front.items() if value is not None}


def _text(name: str, method: Method, config: object, task: str, provenance: Mapping[str, Any], spec: BaseSpec) -> str:
    base, data = spec.id or "its base", provenance["data"]
    variant = method.variant(config)
    kind = f"{method.title} ({variant})" if variant else method.title
    rows = [
        ("Method", f"{kind}, {method.paper}"),
        ("Base", f"{base}, fingerprint `{provenance['base']['fingerprint'][:12]}`"),
        ("Task", task),
        ("Trained parameters", f"{provenance['parameters']:,} ({provenance['parameters'] / spec.parameters:.3%})"),
        ("Training data", f"{data['train']['examples']} examples, sha256 `{data['hash'][:12]}`"),
        ("Steps", f"{provenance['steps']} at a peak rate of {provenance['learning_rate']:g}"),
        ("Final loss", f"{provenance['metrics']['loss']:.4f}"),
        ("Seconds", f"{provenance['seconds']:.1f}"),
        ("Peak memory", f"{provenance['peak_memory_bytes'] / 2**30:.2f} GiB, of the whole run"),
    ]
    score = provenance["metrics"].get("score")
    if score:
        shown = f"{score['value']:.4g} [{score['low']:.4g}, {score['high']:.4g}] on {score['n']} examples"
        rows.append((f"Score ({score['metric']}, 95 % interval)", shown))
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return f"""# {name}

{kind} for the task `{task}` on {base}.

| | |
|---|---|
{table}

Every option, the seed, the versions and a probe that proves on loading that the adapter does what it did in
training are in `graft.json`.

## Use

```sh
graft serve --base BASE_FOLDER --adapter {name}=THIS_FOLDER
curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "prompt": "...", "max_tokens": 16, "temperature": 0}}'
```

Prompts must look like those of the training data; the adapter was trained on completions only, which end in the
base's EOS.
"""
