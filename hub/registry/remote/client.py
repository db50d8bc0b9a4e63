"""A registry behind a URL: graft's own hub or huggingface.co, through the ordinary Hugging Face client.

Answers to the same names as `Registry`, so that a command takes either. What the Hugging Face protocol has no word for
(aliases, tasks, scores) goes to graft's own API, and is refused by name where the hub doesn't have it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.hf_api import RepoFile

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.adapters.validation import CONFIG, inspect_artifact
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import (
    ArtifactError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    TooLargeError,
)
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.commits.publish_folder import PULLED, stage_upload
from graft.hub.registry.leaderboard import Evaluation, Standing, Task
from graft.hub.registry.queries import Revision
from graft.hub.registry.refs import Move, Ref
from graft.hub.registry.remote.answers import (
    BASE_LABEL,
    entry_of,
    errors_of_client,
    ignore,
    many_of,
    one_of,
    require_rows,
    revision_of,
    standing_of,
)
from graft.hub.registry.remote.api import HubApi, checked_url
from graft.hub.registry.search import Page, Query
from graft.hub.registry.storage.blob_store import CHUNK_BYTES

GREETING_S = 10
MAX_PULL_BYTES = MAX_WEIGHTS_BYTES + (1 << 30)  # the largest adapter, and what lies beside its weights
LARGE_BY_LFS = {
    "X-Graft-Uploads": "lfs"
}  # asks graft's own hub for it (web/huggingface/git_lfs.py); another one takes no notice
# Query.sort -> what the protocol calls it. Hubs other than ours know no score.
SORTS: dict[str, Any] = {
    "updated": "last_modified",
    "created": "created_at",
    "downloads": "downloads",
    "score": "score",
}


class RemoteRegistry:
    """A hub at `url`. The token is the client's own (HF_TOKEN, or `hf auth login`) unless one is given."""

    def __init__(self, url: str, token: str | None = None):
        self.url = checked_url(url)
        self.client = HfApi(endpoint=self.url, token=token, headers=LARGE_BY_LFS)
        self.api = HubApi(self.client)

    def require_there(self) -> None:
        """Ask once, and briefly. Raises GraftError where nobody answers, or somebody that is no hub, such as a proxy."""
        self.api.call("GET", "/api/models?limit=1", require_rows, timeout=GREETING_S)

    # Adapters

    def publish(
        self,
        folder: str | Path,
        name: str,
        *,
        tags: Sequence[str] = (),
        private: bool = False,
        user: str = "",
        message: str = "",
    ) -> Revision:
        """As Registry.publish; who publishes is known by the token. The adapter is proven here before it travels."""
        folder = Path(folder)
        inspect_artifact(folder, None)
        with (
            stage_upload(folder) as (sent, spec),
            errors_of_client(self.url),
            self._make_repo(name, private),
            self._large_by_lfs(),
        ):
            if spec is not None:
                self._offer_base(spec)
            title, _, rest = message.partition("\n")
            made = self.client.upload_folder(
                repo_id=name,
                folder_path=sent,
                delete_patterns="*",
                commit_message=title or f"Publish {folder.resolve().name}",
                commit_description=rest.strip() or None,
            )
            for tag in tags:
                self.client.create_tag(name, tag=tag, revision=made.oid)
        return self.resolve(f"{name}@{made.oid}")

    @contextmanager
    def _large_by_lfs(self) -> Iterator[None]:
        """A graft hub takes large files by LFS, piece by piece, from a client that doesn't turn to xet instead."""
        xet = constants.HF_HUB_DISABLE_XET
        with suppress(GraftError):  # a hub without accounts: another one than graft's
            if self.api.call("GET", "/api/whoami-v2", lambda me: me["auth"]["accessToken"]["displayName"]) == "graft":
                constants.HF_HUB_DISABLE_XET = True
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_XET = xet

    def require_writer(self, names: Iterable[str]) -> None:
        """Whether this hub would let this token publish under `names`, to be known before the work.

        Raises GraftError where no hub answers, UnauthorizedError or ForbiddenError for a token that can't write there.
        """
        role = None
        with suppress(NotFoundError):  # a hub without this address is asked by the publishing itself
            role = self.api.call(
                "GET", "/api/whoami-v2", lambda me: dict(me["auth"].get("accessToken") or {}).get("role")
            )
        if role == "read":
            raise ForbiddenError(f"The token for {self.url} may only read: publishing needs one that may write.")
        for name in names:
            with suppress(NotFoundError):  # a repo that is not there yet, on a hub that asks for it first
                self.api.call("GET", f"/api/models/{name}/auth-check/write", ignore)

    @contextmanager
    def _make_repo(self, name: str, private: bool) -> Iterator[None]:
        """The repo, made when missing, and taken away again where nothing got into it."""
        missing = not self.client.repo_exists(name)
        self.client.create_repo(name, private=private, exist_ok=True)
        try:
            yield
        except BaseException:
            if missing and self.client.model_info(name).sha is None:
                self.client.delete_repo(name)
            raise

    def _offer_base(self, spec: BaseSpec) -> None:
        """A graft hub checks shapes by the manifest; another one has no place for it."""
        with suppress(NotFoundError):
            self.api.call("POST", "/api/bases", ignore, json.loads(spec.to_json()))

    def resolve(self, name: str, *, base: str | None = None) -> Revision:
        """As Registry.resolve."""
        if name.startswith(TASK_PREFIX):
            return self.api.call("GET", f"/api/resolve?{_query(name=name, base=base)}", one_of(Revision))
        repo, _, ref = name.partition("@")
        with errors_of_client(self.url):
            return revision_of(self.client.model_info(repo, revision=ref or None))

    def pull(self, name: str, folder: str | Path) -> Revision:
        """The files of an adapter (folder.PULLED) and no others, for a repo may hold whole bases and checkpoints.

        Every file's hash is compared with what the hub lists for that commit. Raises TooLargeError, before a byte
        travels, above MAX_PULL_BYTES in all, ArtifactError for a repo without an adapter. In `folder` they replace those of
        another version, all or none.
        """
        revision = self.resolve(name)
        with errors_of_client(self.url):
            # Nothing else is asked for or written, so a hub's own spelling of a path leads nowhere.
            listed = self.client.list_repo_tree(revision.repo, revision=revision.id)
            files = [entry for entry in listed if isinstance(entry, RepoFile) and entry.path in PULLED]
            _require_an_adapter(name, files)
            local = Path(
                snapshot_download(
                    revision.repo,
                    revision=revision.id,
                    endpoint=self.url,
                    token=self.client.token,
                    allow_patterns=[file.path for file in files],
                )
            )
        with write_folder_whole(Path(folder), last=PULLED) as staging:
            for file in files:
                _require_intact(local / file.path, file)
                shutil.copyfile(local / file.path, staging / file.path)
        return revision

    def search(self, query: Query) -> Page:
        """As Registry.search, by the client's own list_models. Raises GraftError for a sort that it can't do."""
        if query.sort not in SORTS:
            raise GraftError(f"A hub can't sort by {query.sort!r}: choose one of {', '.join(SORTS)}.")
        labels = [*query.labels, *([query.method] if query.method else [])]
        labels += [TASK_PREFIX + query.task] if query.task else []
        labels += [BASE_LABEL + query.base] if query.base else []
        with errors_of_client(self.url):
            models = self.client.list_models(
                filter=labels or None,
                author=query.author or None,
                search=query.text or None,
                sort=SORTS[query.sort],
                limit=query.offset + query.limit,
                full=True,
            )
            entries = tuple(entry_of(info) for info in models)[query.offset :]
        return Page(entries, query.offset + len(entries))

    # What only graft's own hub has

    def promote(self, ref: str, alias: str, *, who: str = "", why: str = "") -> Revision:
        repo, _, revision = ref.partition("@")
        body = {"revision": revision or "main", "why": why}
        return self.api.call("PUT", f"/api/adapters/{repo}/aliases/{alias}", one_of(Revision), body)

    def rollback(self, name: str, alias: str, *, who: str = "", why: str = "") -> Revision:
        return self.api.call("POST", f"/api/adapters/{name}/aliases/{alias}/rollback", one_of(Revision), {"why": why})

    def revisions(self, name: str) -> list[Revision]:
        return self.api.call("GET", f"/api/adapters/{name}/history", many_of(Revision, "revisions"))

    def all_refs(self, name: str) -> list[Ref]:
        return self.api.call("GET", f"/api/adapters/{name}/history", many_of(Ref, "refs"))

    def history(self, name: str) -> list[Move]:
        return self.api.call("GET", f"/api/adapters/{name}/history", many_of(Move, "moves"))

    def add_task(self, slug: str, metric: str, data: bytes, description: str, *, user: str = "") -> Task:
        body = {"metric": metric, "description": description, "data": data.decode()}
        return self.api.call("PUT", f"/api/tasks/{slug}", one_of(Task), body)

    def task(self, slug: str) -> Task:
        return self.api.call("GET", f"/api/tasks/{slug}", one_of(Task))

    def tasks(self) -> list[Task]:
        return self.api.call("GET", "/api/tasks", many_of(Task, "tasks"))

    def task_data(self, slug: str) -> bytes:
        """The evaluation set. Raises ArtifactError when it does not hash to what the hub says."""
        wanted, data = self.task(slug).data_hash, self.api.fetch("GET", f"/api/tasks/{slug}/data")
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ArtifactError(f"The evaluation set of {slug} arrived damaged: try again.")
        return data

    def record_evaluation(self, *, user: str = "", **score: object) -> None:
        """As Registry.record_evaluation; who measured is known by the token."""
        self.api.call("POST", "/api/evaluations", ignore, score)

    def evaluations(self, name: str) -> list[Evaluation]:
        return self.api.call("GET", f"/api/adapters/{name}/evaluations", many_of(Evaluation, "evaluations"))

    def leaderboard(self, task: str, base: str | None = None) -> list[Standing]:
        return self.api.call(
            "GET", f"/api/tasks/{task}/leaderboard?{_query(base=base)}", many_of(standing_of, "standings")
        )


def _require_an_adapter(name: str, files: Sequence[RepoFile]) -> None:
    if CONFIG not in {file.path for file in files}:
        raise ArtifactError(f"{name} holds no {CONFIG}: it is no adapter.")
    if (size := sum(file.size for file in files)) > MAX_PULL_BYTES:
        raise TooLargeError(
            f"The adapter files of {name} have {size:,} bytes and at most {MAX_PULL_BYTES:,} are pulled: "
            "check that it is an adapter, and not a whole model."
        )


def _require_intact(path: Path, file: RepoFile) -> None:
    """Clients don't compare what they downloaded with its hash. Raises ArtifactError where it differs."""
    if file.lfs is not None:
        digest, wanted = hashlib.sha256(), file.lfs.sha256
    else:
        digest, wanted = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), file.blob_id
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != wanted:
        raise ArtifactError(
            f"{file.path} arrived damaged, or was changed in the download cache: delete {path} and pull again."
        )


def _query(**values: str | None) -> str:
    return urlencode({key: value for key, value in values.items() if value})
