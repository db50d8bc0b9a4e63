"""Repos, revisions and files the way Hugging Face clients parse them. Many at once cost as many queries as one.

Knows the registry, no routes. Weights are spelled with `lfs` (their sha256 is their ETag) though they never travel by
LFS, so that a client names and compares them by content.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from graft.hub.adapters.model_card import texts
from graft.hub.registry import queries, search
from graft.hub.registry.queries import FACTS, File, Repo, Revision
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import SearchHit


def infos(registry: Registry, states: Sequence[tuple[Repo, Revision | None]], *, sizes: bool = False) -> list[dict]:
    """Each repo at a revision (None: it is empty) as `model_info` parses it."""
    db, revisions = registry.db, [revision.id for _, revision in states if revision]
    repos = [repo.id for repo, _ in states]
    labels, scores = search.labels_of(db, repos), search.scores_of(db, repos)
    cards, files = queries.cards(db, revisions), queries.files_of(db, revisions)
    return [
        _info(
            repo,
            revision,
            card=cards.get(revision.id, {}) if revision else {},
            files=files.get(revision.id, []) if revision else [],
            labels=labels.get(repo.id, []),
            score=scores.get(repo.id),
            sizes=sizes,
        )
        for repo, revision in states
    ]


def _info(
    repo: Repo,
    revision: Revision | None,
    *,
    card: Mapping[str, object],
    files: Sequence[File],
    labels: Sequence[str],
    score: float | None,
    sizes: bool,
) -> dict[str, object]:
    """`graft` adds what only we know, the digest above all."""
    base = revision.base_id if revision else None
    info: dict[str, object] = {
        "_id": str(repo.id),
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.namespace,
        "sha": revision.id if revision else None,
        "lastModified": repo.updated_at,
        "createdAt": repo.created_at,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": 0,
        "tags": labels,
        "pipeline_tag": next(iter(texts(card.get("pipeline_tag"))), None),
        "library_name": next(iter(texts(card.get("library_name"))), None),
        "cardData": card,
        "baseModels": {"relation": "adapter", "models": [{"id": base}]} if base else None,
        "usedStorage": sum(file.size for file in files),
    }
    if revision and revision.digest:
        info["graft"] = {key: getattr(revision, key) for key in FACTS} | {"score": score}
    return info | {"siblings": [_sibling(file, sizes) for file in files]}


def model_list(registry: Registry, entries: Sequence[SearchHit], full: bool) -> list[dict[str, object]]:
    """Repos as `list_models` parses them; `full` as `model_info` does."""
    db = registry.db
    repos = queries.repos_named(db, [entry.name for entry in entries])
    there = [(repos[entry.name], entry) for entry in entries if entry.name in repos]  # the others went in between
    if full:
        revisions = queries.revisions(db, [entry.revision_id for _, entry in there])
        return infos(registry, [(repo, revisions.get(entry.revision_id)) for repo, entry in there])
    labels = search.labels_of(db, [repo.id for repo, _ in there])
    return [_list_entry(repo, entry, labels.get(repo.id, [])) for repo, entry in there]


def _list_entry(repo: Repo, entry: SearchHit, labels: Sequence[str]) -> dict[str, object]:
    return {
        "_id": str(repo.id),
        "id": entry.name,
        "modelId": entry.name,
        "author": repo.namespace,
        "lastModified": entry.updated_at,
        "createdAt": entry.created_at,
        "private": entry.private,
        "downloads": entry.downloads,
        "likes": 0,
        "sha": entry.revision_id or None,
        "tags": labels,
    }


def etag(file: File) -> str:
    """What a client names its cached copy by: the content's sha256 for weights, git's name for the rest."""
    return file.sha256 if _is_weights(file) else file.git_oid


def _is_weights(file: File) -> bool:
    return file.path.endswith(".safetensors")


def _lfs(file: File) -> dict[str, object]:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {file.size}\n"
    return {"oid": file.sha256, "sha256": file.sha256, "size": file.size, "pointerSize": len(pointer)}


def _sibling(file: File, sizes: bool) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": file.path}
    if sizes:
        entry |= {"size": file.size, "blobId": file.git_oid}
        entry |= {"lfs": _lfs(file)} if _is_weights(file) else {}
    return entry


def tree_entries(registry: Registry, files: Sequence[File], expand: bool) -> list[dict[str, object]]:
    """Files as `list_repo_tree` parses them; with `expand`, each with the commit that last wrote it."""
    commits = queries.revisions(registry.db, sorted({file.changed_in for file in files})) if expand else {}
    return [_tree_entry(file, commits.get(file.changed_in), expand) for file in files]


def _tree_entry(file: File, commit: Revision | None, expand: bool) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": file.path, "size": file.size, "oid": file.git_oid}
    entry |= {"lfs": _lfs(file)} if _is_weights(file) else {}
    if expand:
        last = {"id": commit.id, "title": commit.title, "date": commit.created_at} if commit else None
        entry |= {"lastCommit": last, "securityFileStatus": None}
    return entry


def folders(files: list[File], prefix: str) -> list[dict[str, Any]]:
    """The folders that `files` lie in, below `prefix`. Folders are not stored; their name stands in for git's."""
    by_folder: dict[str, list[str]] = {}
    for file in files:
        parts = file.path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            by_folder.setdefault("/".join(parts[:depth]), []).append(file.git_oid)
    inside = {path: oids for path, oids in by_folder.items() if not prefix or path.startswith(f"{prefix}/")}
    return [
        {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha256("".join(oids).encode()).hexdigest()[:40]}
        for path, oids in sorted(inside.items())
    ]
