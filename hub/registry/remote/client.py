"""A registry behind a URL: graft's own hub or huggingface.co, through the ordinary Hugging Face client.

Keeps the promises of `AnyRegistry` (interface.py). A hub of another kind than graft's is asked by the Hugging Face protocol
alone; what that has no word for (aliases, tasks, scores) raises NotOfferedError.
"""

import hashlib
import json
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from huggingface_hub import HfApi
from pydantic import TypeAdapter

from graft.hub.adapters.model_card import TASK_PREFIX
from graft.hub.adapters.validation import CONFIG, inspect_artifact
from graft.hub.base.manifest import BaseSpec
from graft.hub.errors import (
    ArtifactError,
    ConflictError,
    ForbiddenError,
    GraftError,
    NotFoundError,
    RepoNotFoundError,
    TooLargeError,
    UnauthorizedError,
)
from graft.hub.evaluation.task_data import parse_examples
from graft.hub.machine.atomic_files import write_folder_whole
from graft.hub.registry.access.callers import Caller
from graft.hub.registry.commits.accepted_files import MAX_WEIGHTS_BYTES
from graft.hub.registry.commits.publish_folder import PULLED, contents, stage_upload
from graft.hub.registry.interface import Told, tell_nobody
from graft.hub.registry.leaderboard import FIELDS, MEASURED, Evaluation, Standing
from graft.hub.registry.naming import MAIN, REPO_NAME, check_ref_name, check_repo_name, check_slug
from graft.hub.registry.queries import MOST_LISTED, Revision
from graft.hub.registry.refs import Move, Ref
from graft.hub.registry.remote import plain
from graft.hub.registry.remote.answers import (
    EVALUATION,
    EVALUATIONS,
    HITS,
    MOVES,
    REFS,
    REVISIONS,
    STANDINGS,
    TASK,
    TASKS,
    T,
    errors_of_client,
    ignore,
    read_caller,
    read_revision,
    require_rows,
    revision_of,
    within,
)
from graft.hub.registry.remote.api import HubApi, checked_url
from graft.hub.registry.remote.extensions import LARGE_BY_LFS
from graft.hub.registry.remote.files import ListedFile, adapter_files, fetch_file
from graft.hub.registry.remote.upload import upload
from graft.hub.registry.search import MAX_PAGE, Page, Query
from graft.hub.registry.tasks import Task

_REPO = re.compile(rf"{REPO_NAME.pattern}/{REPO_NAME.pattern}")
GREETING_S = 10.0
MAX_ROWS = 100_000  # of one list that is read page by page
DATA_S, MAX_DATA_BYTES = 600.0, 1 << 30  # of an evaluation set
TRUSTED_S = 0.75  # an answer of graft's own hub: a promoted alias is served within a second
TRUSTED_ELSEWHERE_S = 10.0  # of one that many share, and that counts requests
MAX_PULL_BYTES = MAX_WEIGHTS_BYTES + (1 << 30)  # the largest adapter, and what lies beside its weights


class RemoteRegistry:
    """A hub at `url`. The token is the client's own (HF_TOKEN, or `hf auth login`) unless one is given."""

    def __init__(self, url: str, token: str | None = None):
        self.url = checked_url(url)
        self.client = HfApi(endpoint=self.url, token=token, headers=LARGE_BY_LFS)
        self.api = HubApi(self.client)

    def require_there(self) -> None:
        """Ask once, and briefly. Raises GraftError where nobody answers, or somebody that is no hub, such as a proxy."""
        self.api.call("GET", "/api/models?limit=1", require_rows, timeout=GREETING_S)

    @property
    def is_far(self) -> bool:
        return True

    @property
    def trusted_s(self) -> float:
        return TRUSTED_S if self.api.is_graft else TRUSTED_ELSEWHERE_S

    # Others than we

    def require_users(self) -> None:
        with suppress(UnauthorizedError):
            made_up = self.caller(f"hf_{secrets.token_hex(17)}")
            raise GraftError(
                f"{self.url} takes any token (one that was made up for {made_up.name!r}), so nobody can be told apart by theirs: a "
                "hub without users is its owner's alone, and `graft hub init` makes the first."
            )

    def caller(self, token: str) -> Caller:
        return self._as(token).call("GET", "/api/whoami-v2", read_caller, timeout=GREETING_S)

    def may_read(self, name: str, token: str, *, base: str | None = None) -> bool:
        repo = name.partition("@")[0]
        path = f"/api/models/{quote(repo)}/auth-check"
        if name.startswith(TASK_PREFIX):
            path = f"/api/resolve?{_query(name=name, base=base)}"
        elif not _REPO.fullmatch(repo):
            return False
        try:
            self._as(token).call("GET", path, ignore, timeout=GREETING_S)
        except UnauthorizedError:
            self.caller(token)  # a hub says so, too, of what it does not show: then this finds the token to be good
            return False
        except (NotFoundError, ForbiddenError):
            return False
        return True

    def _as(self, token: str) -> HubApi:
        """The hub, asked by somebody else's token."""
        return HubApi(HfApi(endpoint=self.url, token=token))

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
        """As AnyRegistry.publish; the adapter is proven here before it travels."""
        folder = Path(folder)
        check_repo_name(name)
        for tag in tags:
            check_ref_name(tag)
        contents(folder)
        inspect_artifact(folder, None)
        with stage_upload(folder) as (sent, spec):
            if spec is not None and self.api.is_graft:
                # Where another base has its id, the adapter's shapes are not checked there.
                with suppress(ConflictError):
                    self.api.call("POST", "/api/bases", ignore, json.loads(spec.to_json()))
            message = message or f"Publish {folder.resolve().name}"
            made = upload(self.api, sent, name, tags=tags, private=private, message=message)
        return self.resolve(f"{name}@{made}")

    def require_writer(self, names: Iterable[str]) -> None:
        """As AnyRegistry.require_writer."""
        role = None
        with suppress(NotFoundError):  # a hub without this address is asked by the publishing itself
            role = self.api.call(
                "GET", "/api/whoami-v2", lambda me: dict(me["auth"].get("accessToken") or {}).get("role")
            )
        if role == "read":
            raise ForbiddenError(f"The token for {self.url} may only read: publishing needs one that may write.")
        for name in names:
            with suppress(NotFoundError):  # a repo that is not there yet, on a hub that asks for it first
                self.api.call("GET", f"/api/models/{quote(name)}/auth-check/write", ignore)

    def warnings(self, name: str) -> tuple[str, ...]:
        if not self.api.is_graft:
            return ()
        repo, revision = self._pinned(name)
        path = f"{_adapter(repo)}/revision/{quote(revision, safe='')}"
        return self.api.call("GET", path, lambda answer: tuple((answer["artifact"] or {}).get("warnings", ())))

    def resolve(self, name: str, *, base: str | None = None) -> Revision:
        if self.api.is_graft:
            path = f"/api/resolve?{_query(name=name, base=base)}"
            return self.api.call("GET", path, read_revision, timeout=GREETING_S)
        if name.startswith(TASK_PREFIX):
            self.api.require_graft("tasks")
        repo, _, ref = name.partition("@")
        _adapter(repo)
        return self.api.call("GET", f"/api/models/{quote(repo)}/revision/{quote(ref or MAIN, safe='')}", revision_of)

    def pull(self, name: str, folder: str | Path, *, told: Told = tell_nobody) -> Revision:
        """The files of an adapter (folder.PULLED) and no others, for a repo may hold whole bases and checkpoints.

        Every file's hash and size are compared with what the hub lists for that commit. Raises TooLargeError, before a byte
        travels, above MAX_PULL_BYTES in all, ArtifactError for a repo without an adapter. In `folder` they replace those of
        another version, all or none.
        """
        revision = self.resolve(name)
        listing = self.api.pages(f"/api/models/{quote(revision.repo)}/tree/{revision.id}", adapter_files)
        files = {file.path: file for page in listing for file in page}
        size = _require_an_adapter(name, files)
        came = 0
        with write_folder_whole(Path(folder), last=PULLED) as staging:
            for file in files.values():
                for count in fetch_file(self.api, revision.repo, revision.id, file, staging / file.path):
                    came += count
                    told(came, size)
        return revision

    @contextmanager
    def lend(self, name: str) -> Iterator[Path]:
        """As AnyRegistry.lend: a pull into a folder of its own. The hub counts what it hands out."""
        with tempfile.TemporaryDirectory(prefix="graft-adapter-") as folder:
            self.pull(name, folder)
            yield Path(folder)

    def search(self, query: Query) -> Page:
        if not self.api.is_graft:
            with errors_of_client(self.url):
                return plain.search(self.api, query)
        wanted = {"q": query.text, "task": query.task, "base": query.base, "method": query.method}
        wanted |= {"license": query.license, "author": query.author, "sort": query.sort, "facets": "no"}
        path = f"/api/adapters?{_query(**wanted, limit=str(query.limit), offset=str(query.offset))}"
        labels = urlencode([("label", label) for label in query.labels])
        return self.api.call("GET", f"{path}&{labels}", _read_page)

    def base_name(self, spec: BaseSpec) -> str:
        return spec.fingerprint if self.api.is_graft else spec.id or spec.fingerprint

    # Names that move

    def promote(self, ref: str, alias: str, *, who: str = "", why: str = "") -> Revision:
        repo, revision = self._pinned(ref)
        body = {"revision": revision, "why": why}
        return self.api.call("PUT", self._alias(repo, alias), read_revision, body)

    def rollback(self, name: str, alias: str, *, who: str = "", why: str = "") -> Revision:
        return self.api.call("POST", f"{self._alias(name, alias)}/rollback", read_revision, {"why": why})

    def _alias(self, name: str, alias: str) -> str:
        self.api.require_graft("aliases")
        return f"{_adapter(name)}/aliases/{quote(check_ref_name(alias), safe='')}"

    def _pinned(self, ref: str) -> tuple[str, str]:
        """Repo and revision of 'ns/name@rev' or 'task:T'."""
        if ref.startswith(TASK_PREFIX):
            found = self.resolve(ref)
            return found.repo, found.id
        repo, _, revision = ref.partition("@")
        return repo, revision or "main"

    def revisions(self, name: str, *, limit: int = MOST_LISTED) -> list[Revision]:
        return self._listed(name, "revisions", REVISIONS, limit)

    def all_refs(self, name: str) -> list[Ref]:
        return self._listed(name, "refs", REFS, None)

    def history(self, name: str, *, limit: int = MOST_LISTED) -> list[Move]:
        return self._listed(name, "moves", MOVES, limit)

    def _listed(self, name: str, key: str, kind: TypeAdapter[list[T]], limit: int | None) -> list[T]:
        """Rows of a history, page by page."""
        self.api.require_graft("a history of names that move")
        rows: list[T] = []
        while limit is None or len(rows) < limit:
            if len(rows) > MAX_ROWS:
                raise TooLargeError(f"{self.url} tells more than {MAX_ROWS:,} {key} of {name}: they can't all be read.")
            size = MAX_PAGE if limit is None else min(MAX_PAGE, limit - len(rows))
            path = f"{_adapter(name)}/history?limit={size}&offset={len(rows)}"
            page = self.api.call("GET", path, within(key, kind))
            rows += page
            if len(page) < size:
                break
        return rows

    # Tasks and scores

    def add_task(
        self,
        slug: str,
        metric: str,
        data: bytes,
        description: str,
        *,
        owners: Sequence[str] | None = None,
        user: str = "",
    ) -> Task:
        check_slug(slug)
        parse_examples(data, "the evaluation set")
        body: dict[str, object] = {"metric": metric, "description": description, "data": data.decode()}
        body |= {} if owners is None else {"owners": list(owners)}
        return self.api.call("PUT", self._task(slug), TASK.validate_python, body)

    def set_task_owners(self, slug: str, owners: Sequence[str], *, user: str = "") -> Task:
        return self.api.call("PUT", f"{self._task(slug)}/owners", TASK.validate_python, {"owners": list(owners)})

    def task(self, slug: str) -> Task:
        return self.api.call("GET", self._task(slug), TASK.validate_python)

    def tasks(self) -> list[Task]:
        self.api.require_graft("tasks")
        return self.api.call("GET", "/api/tasks", within("tasks", TASKS))

    def task_data(self, slug: str, data_hash: str | None = None) -> bytes:
        """Raises ArtifactError when it does not hash to what the hub says."""
        wanted = data_hash or self.task(slug).data_hash
        path = f"{self._task(slug)}/data?{_query(hash=data_hash)}"
        data = self.api.fetch("GET", path, timeout=DATA_S, most=MAX_DATA_BYTES)
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ArtifactError(f"The evaluation set of {slug} arrived damaged: try again.")
        return data

    def _task(self, slug: str) -> str:
        self.api.require_graft("tasks")
        return f"/api/tasks/{quote(slug, safe='')}"

    def record_evaluation(self, evaluation: Evaluation, *, user: str = "") -> Evaluation:
        self.api.require_graft("scores")
        fields = {key: value for key, value in asdict(evaluation).items() if key in FIELDS}
        if evaluation.source == MEASURED:
            del fields["source"]  # the hub knows what our token makes of it
        return self.api.call("POST", "/api/evaluations", EVALUATION.validate_python, fields)

    def evaluation(self, id: int) -> Evaluation:
        self.api.require_graft("scores")
        return self.api.call("GET", f"/api/evaluations/{id}", EVALUATION.validate_python)

    def evaluations(self, name: str) -> list[Evaluation]:
        self.api.require_graft("scores")
        return self.api.call("GET", f"{_adapter(name)}/evaluations", within("evaluations", EVALUATIONS))

    def leaderboard(self, task: str, base: str | None = None) -> list[Standing]:
        path = f"{self._task(task)}/leaderboard?{_query(base=base)}"
        return self.api.call("GET", path, within("standings", STANDINGS))


def _read_page(answer: Any) -> Page:
    return Page(tuple(HITS.validate_python(answer["adapters"])), int(answer["total"]))


def _adapter(name: str) -> str:
    """The address of an adapter in graft's own API. Raises RepoNotFoundError for what can't be its name."""
    namespace, _, short = name.partition("/")
    if not namespace or not short or "/" in short:
        raise RepoNotFoundError(f"There is no adapter {name!r} here, or it is private and you are not signed in.")
    return f"/api/adapters/{quote(namespace, safe='')}/{quote(short, safe='')}"


def _require_an_adapter(name: str, files: Mapping[str, ListedFile]) -> int:
    """How many bytes its files have."""
    if CONFIG not in files:
        raise ArtifactError(f"{name} holds no {CONFIG}: it is no adapter.")
    if (size := sum(file.size for file in files.values())) > MAX_PULL_BYTES:
        raise TooLargeError(
            f"The adapter files of {name} have {size:,} bytes and at most {MAX_PULL_BYTES:,} are pulled: "
            "check that it is an adapter, and not a whole model."
        )
    return size


def _query(**values: str | None) -> str:
    return urlencode({key: value for key, value in values.items() if value})
