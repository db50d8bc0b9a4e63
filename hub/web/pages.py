"""The pages that are read: browsing, an adapter, tasks with their leaderboards, comparing.

Every page is whole without JavaScript, keeps its state in the URL, and has its data as JSON one link away.
Pages that write something: forms.py.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flask import Blueprint, Flask, redirect, render_template, request, url_for
from flask.sansio.blueprints import BlueprintSetupState
from markupsafe import Markup
from werkzeug.datastructures import MultiDict
from werkzeug.wrappers import Response

from graft.hub.adapters.model_card import TASK_PREFIX, split_card
from graft.hub.adapters.validation import CARD, Inspection
from graft.hub.chat.words import AdapterWords, words_of
from graft.hub.errors import GraftError, RepoNotFoundError, RevisionNotFoundError
from graft.hub.registry import leaderboard, search
from graft.hub.registry.access.permissions import Action, may
from graft.hub.registry.naming import REPO_NAME
from graft.hub.registry.queries import Repo, Revision
from graft.hub.registry.refs import Ref
from graft.hub.registry.tasks import Task
from graft.hub.web import filters, svg_charts
from graft.hub.web.bodies import Search
from graft.hub.web.huggingface.read import readable_repo
from graft.hub.web.request import caller, endpoint, hub, read_arguments, registry, unquote_part

blueprint = Blueprint("pages", __name__)

PAGE = 25
TABS = ("card", "files", "versions", "evaluations", "use")
FACETS = {"task": "Task", "base": "Base model", "method": "Method", "license": "Licence"}
SORTS = {
    "updated": "Recently updated",
    "score": "Best score",
    "downloads": "Most downloads",
    "created": "Newest",
    "size": "Smallest",
    "name": "Name",
}
MAX_COMPARED = 6
MAX_SHOWN = 50
MAX_CURVE_POINTS = 2000
MAX_PLOTTED, CURVE_DIGITS = 1e12, 12  # what a curve can show of a number


@blueprint.record_once
def _prepare(state: BlueprintSetupState) -> None:
    assert isinstance(state.app, Flask)
    filters.install(state.app)


@blueprint.app_context_processor
def _frame_context() -> dict[str, object]:
    """What the frame around every page shows."""
    try:
        return {"me": caller(), "inference": hub().inference_url}
    except GraftError:
        return {"me": None, "inference": None}


@blueprint.get("/")
def browse() -> str:
    query = read_arguments(Search, MultiDict([*request.args.items(multi=True), ("limit", str(PAGE))])).query()
    if query.sort == search.BY_SCORE and not query.is_of_one_task:
        query = replace(query, sort=search.Query.sort)  # the task was just let go
    page, facets = search.browse(registry().db, query, caller())
    return render_template(
        "browse.html", query=query, page=page, facets=facets, facet_names=FACETS, sorts=SORTS, args=request.args
    )


@blueprint.get("/index.json")
def browse_json() -> Response:
    return redirect(f"{url_for('api.search')}?{request.query_string.decode()}")


@blueprint.get("/<namespace>")
def person(namespace: str) -> Response:
    """Somebody's adapters."""
    if not REPO_NAME.fullmatch(namespace):
        raise RepoNotFoundError(f"There is no page {namespace!r}.")
    return redirect(url_for("pages.browse", author=namespace))


# One adapter


@blueprint.get("/<namespace>/<name>")
@blueprint.get("/<namespace>/<name>/tree/<revision>")
@blueprint.get("/<namespace>/<name>/commit/<revision>")
def adapter(namespace: str, name: str, revision: str = "main") -> str:
    """The card and everything else known of an adapter, in tabs that are plain links."""
    repo = readable_repo(namespace, name)
    tab = request.args.get("tab", "card")
    if registry().branch_head(repo, "main") is None:
        return render_template("empty.html", repo=repo, endpoint=endpoint())
    commit = registry().resolve(f"{repo.name}@{unquote_part(revision)}", caller=caller())
    inspection = registry().found(commit.id)
    return render_template(
        "adapter.html",
        repo=repo,
        revision=commit,
        pinned=revision if revision != "main" else None,
        inspection=inspection,
        tab=tab if tab in TABS else "card",
        tabs=TABS,
        names=_names(repo),
        **_tab(tab, repo, commit, inspection),
    )


def _tab(tab: str, repo: Repo, revision: Revision, inspection: Inspection | None) -> dict[str, object]:
    """What only the chosen tab needs."""
    match tab:
        case "files":
            return {"files": registry().files(revision.id)}
        case "versions":
            return {
                "revisions": registry().revisions(repo.name, limit=200),
                "moves": registry().history(repo.name, limit=200),
                "aliases": [ref for ref in registry().all_refs(repo.name) if ref.kind == "alias"],
                "may_write": may(caller(), Action.REPO_WRITE, repo.name),
                "task": next((task for task in registry().tasks() if task.slug == revision.task), None),
            }
        case "evaluations":
            return {"evaluations": registry().evaluations(repo.name), "present": _present_data()}
        case "use":
            return {"snippets": _snippets(repo, revision), "words": _words(revision)}
    return {"card": filters.card_html(_body(revision)), "curve": _curve(inspection)}


def _names(repo: Repo) -> dict[str, list[Ref]]:
    """commit -> the refs that point at it."""
    names: dict[str, list[Ref]] = {}
    for ref in registry().all_refs(repo.name):
        names.setdefault(ref.revision, []).append(ref)
    return names


def _body(revision: Revision) -> str:
    tree = registry().tree(revision.id)
    if CARD not in tree:
        return "*This adapter has no model card.*"
    return split_card(registry().blobs.read(tree[CARD]).decode())[1]


def _words(revision: Revision) -> AdapterWords:
    """What the adapter brings for text."""
    tree, blobs = registry().tree(revision.id), registry().blobs

    def read(name: str, most: int) -> bytes | None:
        if name not in tree:
            return None
        with blobs.open(tree[name]) as file:
            return file.read(most)

    return words_of(read)


def _present_data() -> dict[str, str]:
    return {task.slug: task.data_hash for task in registry().tasks()}


def _curve(inspection: Inspection | None) -> Markup:
    """The training loss that graft.json keeps as `history`: [{"step", "loss", ...}]."""
    rows = inspection.provenance.get("history") if inspection else None
    rows = rows if isinstance(rows, list) else []
    values = [
        (round(float(row["step"]), CURVE_DIGITS), round(float(row["loss"]), CURVE_DIGITS))
        for row in rows[:MAX_CURVE_POINTS]
        if isinstance(row, dict) and all(_is_plottable(row.get(key)) for key in ("step", "loss"))
    ]
    return svg_charts.curve(values, "Training loss by step", "step", "loss")


def _is_plottable(value: object) -> bool:
    """Whether a stranger's value is a number that an axis can be made for: 10**400 is no float, 1e308 has no next one."""
    return isinstance(value, (int, float)) and abs(value) < MAX_PLOTTED


def _snippets(repo: Repo, revision: Revision) -> list[tuple[str, str]]:
    """How to use just this version, each with its own tool."""
    pinned, base, here = f"{repo.name}@{revision.id}", revision.base_id or "BASE", endpoint()
    serving = hub().inference_url or "http://127.0.0.1:8000"
    request_body = json.dumps({"model": pinned, "prompt": "...", "max_tokens": 32})
    return [
        (
            "graft: served beside every other adapter of its base",
            f"graft serve --base {base} --hub {here}\n\n"
            f"curl {serving}/v1/completions -H 'Content-Type: application/json' \\\n  -d '{request_body}'",
        ),
        ("graft: on disk, every byte checked", f"graft pull {pinned} --hub {here}"),
        (
            "PEFT",
            f"# HF_ENDPOINT={here}\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
            f'model = PeftModel.from_pretrained(base, "{repo.name}", revision="{revision.id}")',
        ),
        (
            "vLLM (LoRA only)",
            f"HF_ENDPOINT={here} hf download {repo.name} --revision {revision.id} "
            f"--local-dir {repo.name.partition('/')[2]}\n"
            f"vllm serve {base} --enable-lora --lora-modules {repo.name.partition('/')[2]}={repo.name.partition('/')[2]}",
        ),
        (
            "huggingface_hub",
            f"from huggingface_hub import snapshot_download\n\n"
            f'snapshot_download("{repo.name}", revision="{revision.id}", endpoint="{here}")',
        ),
    ]


# Tasks


@blueprint.get("/tasks")
def tasks() -> str:
    counts = dict(search.facets(registry().db, search.Query(), caller())["task"])
    return render_template("tasks.html", tasks=registry().tasks(), counts=counts)


@blueprint.get("/tasks/<slug>.json")
def task_json(slug: str) -> Response:
    return redirect(f"{url_for('api.leaderboard', slug=slug)}?{request.query_string.decode()}")


@blueprint.get("/tasks/<slug>")
def task(slug: str) -> str:
    """The leaderboard: adapters and bare bases on the task's present evaluation set."""
    task, base = registry().task(slug), request.args.get("base") or None
    everything = registry().places(task, None, caller())
    places = everything if base is None else registry().places(task, base, caller())
    shown = registry().standings(places if "all" in request.args else places[:MAX_SHOWN])
    return render_template(
        "task.html",
        task=task,
        served=_served(slug, base, places),
        standings=shown,
        hidden=len(places) - len(shown),
        bases=sorted({place.base for place in everything if place.base}),
        base=base,
        chart=_scatter(task, shown),
    )


def _served(slug: str, base: str | None, places: Sequence[leaderboard.Place]) -> Revision | None:
    """What `task:T` serves of what the caller sees, on the chosen base where one is."""
    fingerprint = next((place.fingerprint for place in places if base == place.base), None)
    try:
        return registry().resolve(f"{TASK_PREFIX}{slug}", base=fingerprint, caller=caller())
    except RevisionNotFoundError:
        return None


def _scatter(task: Task, standings: Sequence[leaderboard.Standing]) -> Markup:
    points = [
        svg_charts.Point(
            x=float(row.parameters),
            y=row.evaluation.value,
            label=f"{row.evaluation.repo}: {row.evaluation.value:.3f} with {filters.amount(row.parameters)} parameters",
            kind=f"m-{row.method}",
            low=row.evaluation.low,
            high=row.evaluation.high,
            href=url_for(
                "pages.adapter",
                namespace=row.evaluation.repo.partition("/")[0],
                name=row.evaluation.repo.partition("/")[2],
            ),
        )
        for row in standings
        if row.rank and row.parameters and row.evaluation.repo
    ]
    bare = [row.evaluation.value for row in standings if not row.rank]
    line = svg_charts.Point(1, bare[0], "bare base") if len(bare) == 1 else None
    return svg_charts.scatter(points, f"{task.metric} against size", "trained parameters", task.metric, line)


# Comparing


@blueprint.get("/compare")
def compare() -> str:
    """Versions side by side: `?a=ns/name@rev&a=...`."""
    names = [name for name in request.args.getlist("a") if name][:MAX_COMPARED]
    revisions = [registry().resolve(name, caller=caller()) for name in names]
    inspections = [registry().found(revision.id) for revision in revisions]
    configs = [inspection.config if inspection else {} for inspection in inspections]
    return render_template(
        "compare.html",
        names=names,
        revisions=revisions,
        facts=_facts(revisions),
        config=_differences(configs),
        metrics=_metrics(revisions),
        tensors=_tensors(inspections),
        choices=registry().search(search.Query(sort="name", limit=500), caller()).entries,
        most=MAX_COMPARED,
    )


def _facts(revisions: Sequence[Revision]) -> list[tuple[str, list[str]]]:
    shown = {
        "method": lambda r: f"{r.method or ''} {r.variant if r.variant and r.variant != r.method else ''}".strip(),
        "task": lambda r: r.task or "",
        "base": lambda r: r.base_id or "",
        "parameters": lambda r: filters.amount(r.parameters),
        "weights": lambda r: filters.size(r.bytes),
        "largest rank": lambda r: str(r.max_rank or "–"),
        "dtype": lambda r: r.dtype or "",
        "digest": lambda r: (r.digest or "")[:16],
        "published": lambda r: f"{r.created_at[:16].replace('T', ' ')} by {r.author}",
    }
    return [(name, [show(revision) for revision in revisions]) for name, show in shown.items()]


def _differences(configs: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """The config keys whose values are not all equal."""
    keys = sorted({key for config in configs for key in config})
    rows = [(key, [json.dumps(config.get(key), sort_keys=True) for config in configs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _metrics(revisions: Sequence[Revision]) -> list[tuple[str, list[leaderboard.Evaluation | None]]]:
    """Latest graft-run score of each, a row per task, data and metric, so that a row compares like with like."""
    latest: dict[tuple[str, str, str], dict[int, leaderboard.Evaluation]] = {}
    for column, revision in enumerate(revisions):
        for row in reversed(registry().evaluations(revision.repo)):
            if row.digest == revision.digest and row.source == leaderboard.MEASURED:
                latest.setdefault((row.task, row.metric, row.data_hash), {})[column] = row
    columns = range(len(revisions))
    return [
        (f"{task} · {metric} · data {data_hash[:8]}", [by_column.get(column) for column in columns])
        for (task, metric, data_hash), by_column in sorted(latest.items())
    ]


def _tensors(inspections: Sequence[Inspection | None]) -> list[tuple[str, list[str]]]:
    """Tensors whose shape or dtype differs, or that not all have."""
    listed = [inspection.tensors if inspection else {} for inspection in inspections]
    names = sorted({name for tensors in listed for name in tensors})
    rows = [(name, [_shape(tensors.get(name)) for tensors in listed]) for name in names]
    return [(name, shapes) for name, shapes in rows if len(set(shapes)) > 1]


def _shape(tensor: Mapping[str, Any] | None) -> str:
    return f"{tensor['dtype']} {'×'.join(map(str, tensor['shape']))}" if tensor else "–"
