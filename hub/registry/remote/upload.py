"""A folder becomes the next version of a repo on a hub, with its tags, or nothing changes there.

graft's own hub sets the tags in the commit's transaction. Another one is asked for them before anything travels and told
afterwards: where somebody takes one in between, the version stays there without it, and that is said.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoFile

from graft.hub.errors import ConflictError
from graft.hub.registry.remote.answers import errors_of_client, errors_of_upload
from graft.hub.registry.remote.api import HubApi
from graft.hub.registry.remote.bounded import bounded_answers
from graft.hub.registry.remote.extensions import LARGE_BY_LFS, TAGS
from graft.hub.registry.remote.files import is_intact

KEPT = ".gitattributes"  # which the client never deletes


def upload(hub: HubApi, folder: Path, name: str, *, tags: Sequence[str], private: bool, message: str) -> str:
    """The id of the commit that holds `folder` and nothing else. Raises ConflictError for a tag that is taken."""
    title, _, rest = message.partition("\n")
    headers = {**LARGE_BY_LFS, TAGS: ",".join(tags)}
    client = HfApi(endpoint=hub.url, token=hub.client.token, headers=headers)
    with _made_repo(hub, name, private), bounded_answers():
        if tags and not hub.is_graft:
            _require_free(hub, name, tags, folder)
        with errors_of_upload(hub.url), _large_by_lfs(hub):
            made = client.upload_folder(
                repo_id=name,
                folder_path=folder,
                delete_patterns="*",
                commit_message=title,
                commit_description=rest.strip() or None,
            ).oid
    if tags:
        with bounded_answers():
            _set_missing(hub, name, tags, made)
    return made


@contextmanager
def _made_repo(hub: HubApi, name: str, private: bool) -> Iterator[None]:
    """The repo, made when missing, and taken away again where nothing got into it."""
    with bounded_answers(), errors_of_client(hub.url):
        missing = not hub.client.repo_exists(name)
        hub.client.create_repo(name, private=private, exist_ok=True)
    try:
        yield
    except BaseException:
        with bounded_answers(), errors_of_client(hub.url):
            if missing and hub.client.model_info(name).sha is None:
                hub.client.delete_repo(name)
        raise


@contextmanager
def _large_by_lfs(hub: HubApi) -> Iterator[None]:
    """A graft hub takes large files by LFS, piece by piece, from a client that doesn't turn to xet instead."""
    xet = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = xet or hub.is_graft
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = xet


def _tags(hub: HubApi, name: str) -> dict[str, str]:
    """Tag -> commit."""
    return {tag.name: tag.target_commit for tag in hub.client.list_repo_refs(name).tags}


def _require_free(hub: HubApi, name: str, tags: Sequence[str], folder: Path) -> None:
    """Raises ConflictError for a tag that is taken, unless it is of the head and `folder` is what the head holds."""
    with errors_of_client(hub.url):
        taken = {tag: commit for tag, commit in _tags(hub, name).items() if tag in tags}
        if taken and not (set(taken.values()) == {hub.client.model_info(name).sha} and _holds(hub, name, folder)):
            raise _taken(min(taken))


def _holds(hub: HubApi, name: str, folder: Path) -> bool:
    """Whether main of `name` is just what `folder` is."""
    listed = hub.client.list_repo_tree(name, recursive=True)
    there = {entry.path: entry for entry in listed if isinstance(entry, RepoFile) and entry.path != KEPT}
    ours = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return ours.keys() == there.keys() and all(is_intact(path, there[name]) for name, path in ours.items())


def _set_missing(hub: HubApi, name: str, tags: Sequence[str], revision: str) -> None:
    """Those that no commit has brought: none was made of what is there already, or the hub isn't graft's."""
    with errors_of_client(hub.url):
        known = _tags(hub, name)
        for tag in tags:
            if known.get(tag, revision) != revision:
                raise _taken(tag)
            if tag not in known:
                hub.client.create_tag(name, tag=tag, revision=revision)


def _taken(tag: str) -> ConflictError:
    return ConflictError(f"{tag!r} is already a tag here: choose another name.")
