"""The writing half of the Hugging Face Hub protocol: card check, preupload, commit.

Every file is asked for as "regular": its bytes come base64 inside the commit, so neither xet nor LFS nor their
environment variables matter. LFS (git_lfs.py) stays open for clients that insist on it, and is asked for of graft's own, which
would else hold a large file in memory. Whatever the way in, the bytes go through the store and one `Registry.commit`.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from typing import IO, cast

from flask import Blueprint, Response, jsonify, request

from graft.hub.adapters.model_card import split_card, task_of, texts
from graft.hub.errors import ArtifactError, GraftError
from graft.hub.registry.commits.accepted_files import START_BYTES, check_path, check_size, check_start
from graft.hub.registry.commits.changes import Change, Delete, Put
from graft.hub.registry.commits.trainer_leftovers import (
    LeftOut,
    find_leftover,
    list_leftovers,
    require_no_pickled_adapter,
)
from graft.hub.registry.remote.extensions import TAGS
from graft.hub.registry.storage.arrivals import Arrivals
from graft.hub.request_body import check_body
from graft.hub.web.error_responses import header_text
from graft.hub.web.huggingface import commit_body
from graft.hub.web.huggingface.bodies import Card, CommitFile, CommitHeader, CommitLfsFile, CommitPath, Offers
from graft.hub.web.huggingface.git_lfs import uploaded, wanted
from graft.hub.web.huggingface.read import MODEL, writable_repo
from graft.hub.web.request import caller, endpoint, expect_files, read_body, registry, room_for_body, unquote_part

blueprint = Blueprint("uploads", __name__)

READ_BYTES = 1 << 20  # unbuffered, a line would be read byte by byte


@blueprint.post("/api/validate-yaml")
def validate_yaml() -> Response:
    """What a client asks before it uploads a card: errors stop it there, warnings are printed."""
    try:
        card, _ = split_card(read_body(Card).content)
    except GraftError as error:
        response = jsonify({"errors": [{"message": str(error)}], "warnings": []})
        response.status_code = 400
        return response
    advice = {
        "Tag the adapter with its task (`tags: [task:SLUG]`), or nobody finds it by task.": task_of(card) == "untasked",
        "Say which base it is for (`base_model: ORG/NAME`).": not texts(card.get("base_model")),
        "Say under which licence it may be used (`license: ...`).": not texts(card.get("license")),
    }
    return jsonify({"errors": [], "warnings": [{"message": text} for text, holds in advice.items() if holds]})


@blueprint.post(f"{MODEL}/preupload/<revision>")
def preupload(namespace: str, name: str, revision: str) -> Response:
    """Name what is no part of an adapter, which clients then leave out, and what is there already, so that it need not
    travel. Refuses a file of the adapter's own that could not be committed."""
    repo, offers = writable_repo(namespace, name), read_body(Offers).files
    head = registry().branch_head(repo, unquote_part(revision))
    known = {file.path: file.git_oid for file in registry().files(head)} if head else {}
    given = [(offer.path, offer.size, _decode(offer.path, offer.sample)) for offer in offers]
    require_no_pickled_adapter(path for path, _, _ in given)
    aside = {path: find_leftover(path, size, start, registry().max_weights_bytes) for path, size, start in given}
    for path, size, start in given:
        if aside[path] is None:
            check_size(path, size, registry().max_weights_bytes)
            check_start(path, start)
    response = jsonify({"files": [_preupload_answer(file, aside[file[0]] is not None, known) for file in given]})
    if leftovers := [leftover for leftover in aside.values() if leftover]:
        response.headers["X-HF-Warning"] = _warning(repo.name, leftovers)
    return response


def _preupload_answer(file: tuple[str, int, bytes], ignored: bool, known: dict[str, str]) -> dict[str, object]:
    path, size, _ = file
    mode = "lfs" if wanted(size) else "regular"
    answer: dict[str, object] = {"path": path, "uploadMode": mode, "shouldIgnore": ignored}
    return answer | ({"oid": known[path]} if path in known else {})


def _warning(repo: str, leftovers: list[LeftOut]) -> str:
    """What clients print; they print one warning a topic, which stands before the semicolon."""
    said = f"left out of {repo}; Left out, as no part of an adapter: {list_leftovers(leftovers)}."
    return header_text(said)


@blueprint.post(f"{MODEL}/commit/<revision>")
def commit(namespace: str, name: str, revision: str) -> Response:
    repo = writable_repo(namespace, name)
    if request.args.get("create_pr") in ("1", "true", "True"):
        raise GraftError("This hub has no pull requests: commit to a branch instead (create_branch).")
    expect_files()
    stream = io.BufferedReader(cast(io.RawIOBase, request.stream), READ_BYTES)
    most = registry().max_weights_bytes // 3 * 4 + 4  # base64
    with room_for_body():
        with registry().blobs.receive() as arrivals:
            header, changes = _read_commit(commit_body.lines(stream, most, registry().blobs.incoming), arrivals)
        revision_made = registry().commit(
            repo.name,
            changes,
            title=header.summary or "Upload",
            message=header.description,
            user=caller().name,
            caller=caller(),
            branch=unquote_part(revision),
            parent=header.parentCommit or None,
            tags=[tag for tag in request.headers.get(TAGS, "").split(",") if tag],
        )
    url = f"{endpoint()}/{repo.name}/commit/{revision_made.id}"
    return jsonify({"success": True, "commitOid": revision_made.id, "commitUrl": url, "hookOutput": ""})


def _read_commit(
    lines: Iterator[tuple[str, dict[str, object], IO[bytes] | None]], arrivals: Arrivals
) -> tuple[CommitHeader, list[Change]]:
    """The header and the changes of a commit, files received on the way. Raises GraftError for an unknown key."""
    header = CommitHeader()
    changes: list[Change] = []
    for key, value, content in lines:
        match key:
            case "header":
                header = check_body(CommitHeader, value)
            case "file":
                changes.append(_file(check_body(CommitFile, value), content, arrivals))
            case "lfsFile":
                changes.append(_lfs_file(check_body(CommitLfsFile, value)))
            case "deletedFile":
                changes.append(Delete(check_body(CommitPath, value).path))
            case "deletedFolder":
                changes.append(Delete(check_body(CommitPath, value).path.rstrip("/") + "/"))
            case _:
                raise GraftError(f"{key!r} is no part of a commit: header, file, lfsFile, deletedFile, deletedFolder.")
    return header, changes


def _file(file: CommitFile, content: IO[bytes] | None, arrivals: Arrivals) -> Put:
    """`content`: where the line's own is only the sign that it was moved there."""
    path, text = file.path, file.content.encode()
    if file.encoding == "base64":
        try:
            data = commit_body.Base64(content or io.BytesIO(text))
            return Put(path, registry().store(path, data, data.size, arrivals))
        except binascii.Error:
            raise ArtifactError(f"{path}: the content is not base64.") from None
    if content is not None:
        raise GraftError(f"{path}: a content as long as this must come as base64.")
    return Put(path, registry().store(path, io.BytesIO(text), len(text), arrivals))


def _decode(path: str, content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise ArtifactError(f"{path}: the content is not base64.") from None


def _lfs_file(file: CommitLfsFile) -> Put:
    """A file whose bytes came before, by LFS, or were in the repo all along."""
    path, oid = file.path, file.oid
    check_path(path)
    if not uploaded(oid):
        raise ArtifactError(f"{path}: its bytes ({oid}) were never uploaded, or not by you.")
    with registry().blobs.open(oid) as stream:
        check_start(path, stream.read(START_BYTES))
    return Put(path, registry().blobs.describe(oid))
