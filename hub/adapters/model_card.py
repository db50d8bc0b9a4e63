"""A model card: YAML between two lines of dashes, then Markdown. Read here, also from strangers.

Knows neither the registry nor HTML.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import yaml

from graft.hub.adapters import yaml_core
from graft.hub.errors import ArtifactError

MAX_CARD_CHARS = 1 << 20
MAX_FRONT_MATTER_CHARS = 1 << 16
MAX_CLAIMS = 100  # scores of one card: each is kept as a row
TASK_PREFIX = "task:"
UNTASKED = "untasked"


def split_card(text: str) -> tuple[dict[str, object], str]:
    """(front matter, Markdown). Raises ArtifactError for front matter that isn't a YAML mapping."""
    if len(text) > MAX_CARD_CHARS:
        raise ArtifactError(f"README.md has {len(text):,} characters; at most {MAX_CARD_CHARS:,} are read.")
    text = text.lstrip("\ufeff").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}, text
    head, dashes, body = text[4:].partition("\n---")
    if not dashes:
        raise ArtifactError("README.md opens its front matter with '---' and never closes it: add a second '---' line.")
    if len(head) > MAX_FRONT_MATTER_CHARS:
        raise ArtifactError(
            f"README.md's front matter has {len(head):,} characters; at most {MAX_FRONT_MATTER_CHARS:,} are read: "
            "move what is long below it."
        )
    try:
        front_matter = yaml_core.load(head)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ArtifactError(f"README.md's front matter is not valid YAML: {error}") from None
    if front_matter is not None and not isinstance(front_matter, dict):
        raise ArtifactError("README.md's front matter must be a YAML mapping, such as `license: apache-2.0`.")
    return front_matter or {}, body.partition("\n")[2]


def texts(value: object) -> list[str]:
    """A card field that may be absent, one string or a list, as a list of strings."""
    values = value if isinstance(value, list) else [value]
    return [_word(item) for item in values if isinstance(item, (str, int, float)) and str(item).strip()]


def _word(item: str | float) -> str:
    return str(item).lower() if isinstance(item, bool) else str(item)


def task_of(card: Mapping[str, object]) -> str:
    """The slug of the card's tag `task:SLUG`, or 'untasked'."""
    tasks = [tag.removeprefix(TASK_PREFIX) for tag in texts(card.get("tags")) if tag.startswith(TASK_PREFIX)]
    return tasks[0] if tasks else UNTASKED


def labels(card: Mapping[str, object], extra: Iterable[str] = ()) -> list[str]:
    """What `list_models(filter=...)` can ask for: the card's tags, and its fields in the Hugging Face spelling."""
    all_labels = [*texts(card.get("tags")), *extra]
    all_labels += texts(card.get("library_name")) + texts(card.get("pipeline_tag")) + texts(card.get("language"))
    all_labels += [f"license:{name}" for name in texts(card.get("license"))]
    all_labels += [f"dataset:{name}" for name in texts(card.get("datasets"))]
    for name in texts(card.get("base_model")):
        all_labels += [f"base_model:{name}", f"base_model:adapter:{name}"]
    return list(dict.fromkeys(all_labels))


def reported_scores(card: Mapping[str, object]) -> list[dict[str, Any]]:
    """What the card's `model-index` claims: rows of task, dataset, revision, metric, value, of its first MAX_CLAIMS. Malformed parts are
    skipped."""
    rows = []
    for result, metric in islice(_claims(card), MAX_CLAIMS):
        task, dataset, value = _mapping(result.get("task")), _mapping(result.get("dataset")), metric.get("value")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append(
                {
                    "task": str(task.get("name") or task.get("type") or task_of(card)),
                    "dataset": str(dataset.get("name") or dataset.get("type") or ""),
                    "data_hash": str(dataset.get("revision") or ""),
                    "metric": _metric_name(metric),
                    "value": float(value),
                }
            )
    return rows


def valueless_claims(card: Mapping[str, object]) -> list[str]:
    """The metrics that `model-index` claims without a finite number."""
    return [_metric_name(metric) for _, metric in _claims(card) if metric.get("value") is None]


def _claims(card: Mapping[str, object]) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
    """Each metric of `model-index`, after the result it stands in."""
    for model in _mappings(card.get("model-index")):
        for result in _mappings(model.get("results")):
            for metric in _mappings(result.get("metrics")):
                yield result, metric


def _metric_name(metric: Mapping[str, object]) -> str:
    return str(metric.get("type") or metric.get("name") or "")


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[dict[str, object]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
