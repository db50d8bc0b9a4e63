"""What the protocol has and the hub hasn't, as the unmodified client and the real git show it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.registry import Registry

NAME = "ann/news"


@pytest.fixture
def api(hub: str, registry: Registry, adapter: Path) -> HfApi:
    """Ann, with one adapter."""
    registry.publish(adapter, NAME, tags=["v1"])
    return HfApi(endpoint=hub, token=first_admin(registry.db, "ann"))


def test_head_is_the_default_branch(api: HfApi, hub: str, registry: Registry) -> None:
    head = registry.resolve(NAME).id
    assert api.model_info(NAME, revision="HEAD").sha == head and registry.resolve(f"{NAME}@HEAD").id == head
    assert {entry.path for entry in api.list_repo_tree(NAME, revision="HEAD")} >= {"README.md"}
    assert api.file_exists(NAME, "README.md", revision="HEAD")
    assert [commit.commit_id for commit in api.list_repo_commits(NAME, revision="HEAD")] == [head]
    assert httpx.get(f"{hub}/{NAME}/resolve/HEAD/README.md").headers["x-repo-commit"] == head
    api.create_repo("ann/empty")
    assert list(api.list_repo_tree("ann/empty", revision="HEAD")) == []
    made = api.upload_file(path_or_fileobj=b"{}", path_in_repo="x.json", repo_id=NAME, revision="HEAD").oid
    assert registry.resolve(NAME).id == made and {ref.name for ref in registry.all_refs(NAME)} == {"main", "v1"}
    for kind in (api.create_branch, api.create_tag):
        with pytest.raises(HfHubHTTPError, match="can't name a branch"):
            kind(NAME, **{kind.__name__.removeprefix("create_"): "HEAD"})


ABSENT: dict[str, tuple[Callable[[HfApi], object], str]] = {
    "super_squash": (lambda api: api.super_squash_history(NAME), "no squashing: a version stays what it was"),
    "lfs files": (lambda api: list(api.list_lfs_files(NAME)), "list_repo_tree lists all files"),
    "duplicate": (lambda api: api.duplicate_repo(NAME, "ann/copy"), "pull the adapter and publish it"),
    "discussion": (lambda api: api.create_discussion(NAME, "x"), "no pull requests: commit to a branch"),
    "pull request": (lambda api: api.create_pull_request(NAME, "x"), "commit to a branch"),
    "details": (lambda api: api.get_discussion_details(NAME, 1), "no discussions"),
    "collection": (lambda api: api.create_collection("x", namespace="ann"), "no collections: tag adapters"),
    "webhook": (lambda api: api.create_webhook(url="http://x", watched=[]), "There is no POST /api/settings/webhooks"),
    "like": (lambda api: api.unlike(NAME), "no likes"),
    "access request": (lambda api: api.accept_access_request(NAME, "bob"), "make the repo private"),
    "job": (lambda api: api.run_job(image="x", command=["y"]), "no jobs"),
    "bucket": (lambda api: api.create_bucket("ann/x"), "no buckets"),
}


@pytest.mark.parametrize("what", ABSENT)
def test_a_feature_that_is_not_there_is_named(api: HfApi, what: str) -> None:
    call, said = ABSENT[what]
    with pytest.raises(HfHubHTTPError, match=said) as refused:
        call(api)
    assert not isinstance(refused.value, RepositoryNotFoundError)
    assert refused.value.response.status_code in (501, 404)


def test_a_repo_that_is_not_there_is_still_not_found(api: HfApi) -> None:
    for call in (
        lambda: api.super_squash_history("ann/nothing"),
        lambda: list(api.get_repo_discussions("ann/nothing")),
        lambda: api.model_info("gpt2"),
        lambda: hf_hub_download("gpt2", "config.json", endpoint=api.endpoint),
        lambda: api.dataset_info(NAME),
        lambda: api.space_info(NAME),
        lambda: hf_hub_download("squad", "x.json", repo_type="dataset", endpoint=api.endpoint),
        lambda: hf_hub_download(NAME, "x.json", repo_type="dataset", endpoint=api.endpoint),
    ):
        with pytest.raises(RepositoryNotFoundError):
            call()


def test_lists_of_what_does_not_exist_are_empty(api: HfApi) -> None:
    for found in (
        api.list_datasets(),
        api.list_spaces(),
        api.list_datasets(author="ann"),
        api.list_collections(owner="ann"),
        api.list_daily_papers(),
        api.list_papers(query="lora"),
        api.list_repo_likers(NAME),
        api.list_user_followers("ann"),
        api.list_user_following("ann"),
        api.list_webhooks(),
        api.get_repo_discussions(NAME),
        api.list_pending_access_requests(NAME),
        api.list_liked_repos("ann").models,
    ):
        assert list(found) == []
    assert api.get_model_tags() == {} and api.get_dataset_tags() == {}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "path", ["/api", "/api/", "/api/nothing", "/api/nothing/at/all", "/api/adapters/x", "/api/models/"]
)
def test_a_path_of_the_api_is_never_a_repo(hub: str, method: str, path: str) -> None:
    if (method, path) == ("GET", "/api/models/"):
        return
    reply = httpx.request(method, hub + path)
    assert reply.status_code == 404 and "x-error-code" not in reply.headers, reply.text
    assert f"There is no {method} /api" in reply.json()["error"] and reply.json()["code"] == "not_found"


def test_somebodys_repos_and_who_they_are(api: HfApi, hub: str, registry: Registry, tmp_path, lora_folder) -> None:
    registry.publish(lora_folder(tmp_path / "b", seed=1), "ann/secret", private=True)
    registry.publish(lora_folder(tmp_path / "c", seed=2), "team/news")
    registry.publish(lora_folder(tmp_path / "d", seed=3), "team/secret", private=True)
    bob = HfApi(endpoint=hub, token=create_token(registry.db, "bob", "write", namespaces=("team",)))
    mine = list(api.list_user_repos())
    assert [repo.id for repo in mine] == ["ann/secret", "ann/news"]
    assert [repo.visibility for repo in mine] == ["private", "public"] and all(repo.storage > 1000 for repo in mine)
    assert round(sum(repo.storage_percent for repo in mine)) == 100
    assert {repo.id for repo in bob.list_user_repos()} == {"team/news", "team/secret"}
    assert {repo.id for repo in bob.list_user_repos(namespace="team")} == {"team/news", "team/secret"}
    for other, namespace in ((api, "team"), (HfApi(endpoint=hub, token=False), None)):
        with pytest.raises(HfHubHTTPError):
            list(other.list_user_repos(namespace=namespace))
    assert httpx.get(f"{hub}/api/settings/repositories?limit=1", headers={"Authorization": f"Bearer {api.token}"}).links
    assert (api.get_user_overview("ann").num_models, bob.get_user_overview("ann").num_models) == (2, 1)
    assert bob.get_user_overview("bob").orgs[0].name == "team" and bob.get_user_overview("bob").num_models == 0
    assert (bob.get_organization_overview("team").num_models, api.get_organization_overview("team").num_models) == (
        2,
        1,
    )
    with pytest.raises(HfHubHTTPError, match="no user or namespace 'carol'"):
        api.get_user_overview("carol")
    with pytest.raises(HfHubHTTPError, match="no user or namespace 'bob'"):
        api.get_user_overview("bob")


def test_a_base_is_said_to_be_one(api: HfApi, hub: str, tmp_path: Path) -> None:
    """No RepositoryNotFoundError: clients look into their download cache then, and find the base there."""
    for call in (
        lambda: api.model_info("acme/tiny-llama"),
        lambda: list(api.list_repo_tree("acme/tiny-llama")),
        lambda: api.list_repo_commits("acme/tiny-llama"),
    ):
        with pytest.raises(HfHubHTTPError, match="acme/tiny-llama is a base") as refused:
            call()
        assert not isinstance(refused.value, RepositoryNotFoundError)
    cache = tmp_path / "cache"
    with pytest.raises(LocalEntryNotFoundError) as absent:
        hf_hub_download("acme/tiny-llama", "config.json", endpoint=hub, cache_dir=cache)
    assert "is a base" in str(absent.value.__cause__)
    commit = cache / "models--acme--tiny-llama" / "snapshots" / ("0" * 40)
    commit.mkdir(parents=True)
    (commit / "config.json").write_text("{}")
    refs = commit.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    assert hf_hub_download("acme/tiny-llama", "config.json", endpoint=hub, cache_dir=cache) == str(
        commit / "config.json"
    )


def test_git_is_told_what_to_use(hub: str, api: HfApi, tmp_path: Path) -> None:
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "HOME": str(tmp_path)}
    for name in (NAME, f"{NAME}.git", "ann/nothing"):
        done = subprocess.run(
            ["git", "clone", f"{hub}/{name}", tmp_path / "x"], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode and f"graft pull {name.removesuffix('.git')} --hub {hub}" in done.stderr, done.stderr
        assert "not found" not in done.stderr
    subprocess.run(["git", "init", "-q", tmp_path / "y"], env=env, check=True)
    words = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "-C", tmp_path / "y", *words], env=env, check=True)
    pushed = subprocess.run(
        ["git", "-C", tmp_path / "y", "push", f"{hub}/{NAME}", "HEAD:main"], env=env, capture_output=True, text=True
    )
    assert pushed.returncode and f"graft publish FOLDER {NAME} --hub {hub}" in pushed.stderr


def test_the_hf_command_shows_it(hub: str, api: HfApi, registry: Registry, tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = kept | {"HF_ENDPOINT": hub, "HF_TOKEN": str(api.token), "HF_HOME": str(tmp_path / "home")}

    def hf(*words: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("hf"), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    listed = hf("repos", "ls")
    assert listed.returncode == 0 and NAME in listed.stdout and "public" in listed.stdout
    for words, said in (
        (("discussions", "create", NAME, "--title", "x"), "no pull requests: commit to a branch"),
        (("repos", "duplicate", NAME, "ann/copy"), "pull the adapter and publish it"),
        (("models", "info", "acme/tiny-llama"), "acme/tiny-llama is a base"),
    ):
        done = hf(*words)
        assert done.returncode and said in done.stderr, done.stderr
        assert "hf repos create" not in done.stderr and "Traceback" not in done.stderr


def test_a_file_system_of_all_repos(api: HfApi, hub: str) -> None:
    files = HfFileSystem(endpoint=hub, token=api.token)
    assert files.exists(f"{NAME}@HEAD/README.md") and not files.exists("ann/nothing/README.md")
