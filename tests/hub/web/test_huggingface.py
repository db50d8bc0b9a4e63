"""The unmodified Hugging Face client against the real server: a socket, a process of its own, no mocks."""

import json
from pathlib import Path

import httpx
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from graft.hub.registry.access.tokens import create_token, first_admin
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.registry import Registry
from graft.hub.web.app import create_app


@pytest.fixture
def api(hub: str, registry: Registry) -> HfApi:
    """Ann, with a token."""
    return HfApi(endpoint=hub, token=first_admin(registry.db, "ann"))


@pytest.fixture
def published(api: HfApi, adapter: Path) -> str:
    api.create_repo("ann/news")
    return api.upload_folder(repo_id="ann/news", folder_path=adapter, commit_message="First").oid


def test_push_and_pull(api: HfApi, hub: str, published: str, adapter: Path, tmp_path: Path) -> None:
    info = api.model_info("ann/news", files_metadata=True)
    assert info.sha == published and "task:news-topic" in info.tags
    assert {file.rfilename for file in info.siblings} == {path.name for path in adapter.iterdir()}
    local = snapshot_download("ann/news", endpoint=hub, cache_dir=tmp_path / "cache", token=api.token)
    for path in adapter.iterdir():
        assert (Path(local) / path.name).read_bytes() == path.read_bytes()


def test_whoami_and_a_bad_token(api: HfApi, hub: str) -> None:
    assert api.whoami()["name"] == "ann"
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub, token="hf_wrong").whoami()


def test_create_exists_move_delete(api: HfApi, published: str) -> None:
    assert api.create_repo("ann/news", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("ann/news")
    api.move_repo("ann/news", "ann/headlines")
    assert api.repo_exists("ann/headlines") and api.model_info("ann/news").id == "ann/headlines"
    api.delete_repo("ann/headlines")
    assert not api.repo_exists("ann/headlines")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("ann/headlines")


def test_list_models_by_filters_search_author_and_pages(
    api: HfApi, published: str, tmp_path: Path, lora_folder
) -> None:
    for number in range(5):
        api.create_repo(f"ann/more-{number}")
        folder = lora_folder(tmp_path / str(number), seed=number + 1, task="sentiment")
        api.upload_folder(repo_id=f"ann/more-{number}", folder_path=folder)

    def names(**wanted) -> list[str]:
        return [model.id for model in api.list_models(**wanted)]

    assert names(filter=["task:news-topic", "base_model:adapter:acme/tiny-llama"]) == ["ann/news"]
    assert names(search="news") == ["ann/news"]
    assert len(names(author="ann")) == 6 and names(author="bob") == []
    assert len(names(filter="lora", limit=4)) == 4
    assert len(names(sort="created_at")) == 6
    for model in api.list_models(full=True, cardData=True):
        alone = api.model_info(model.id)
        assert vars(model) == vars(alone) and model.siblings and model.graft["digest"]
    [full] = api.list_models(search="news", full=True, cardData=True)
    assert full.card_data.license == "apache-2.0" and full.siblings


def test_tree_paths_commits_refs_tags_branches(api: HfApi, published: str) -> None:
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="sub/deep/x.json", repo_id="ann/news", commit_message="Second")
    tree = {entry.path: entry for entry in api.list_repo_tree("ann/news", recursive=True, expand=True)}
    assert tree["sub/deep/x.json"].last_commit.title == "Second" and "sub/deep" in tree
    assert tree["adapter_model.safetensors"].lfs.sha256
    assert "sub/deep/x.json" not in [entry.path for entry in api.list_repo_tree("ann/news")]
    assert [entry.path for entry in api.list_repo_tree("ann/news", "sub")] == ["sub/deep"]
    assert [e.path for e in api.get_paths_info("ann/news", ["README.md", "sub", "nope"])] == ["sub", "README.md"]
    assert [commit.title for commit in api.list_repo_commits("ann/news")] == ["Second", "First"]
    api.create_tag("ann/news", tag="v1", revision=published)
    api.create_branch("ann/news", branch="feature/x", revision="v1")
    refs = api.list_repo_refs("ann/news")
    assert {b.name: b.target_commit for b in refs.branches}["feature/x"] == published
    assert [tag.name for tag in refs.tags] == ["v1"]
    assert api.model_info("ann/news", revision="feature/x").sha == published
    assert api.file_exists("ann/news", "README.md", revision="feature/x")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag("ann/news", tag="v1")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="y.json", repo_id="ann/news", revision="feature/x")
    api.delete_tag("ann/news", tag="v1")
    api.delete_branch("ann/news", branch="feature/x")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ann/news", revision="v1")


def test_commits_deletes_copies_and_stale_parents(api: HfApi, published: str) -> None:
    operations = [
        CommitOperationAdd("a.json", b"{}"),
        CommitOperationCopy("adapter_model.safetensors", "copy/adapter_model.safetensors"),
    ]
    made = api.create_commit("ann/news", operations, commit_message="x", parent_commit=published)
    assert made.oid != published and api.file_exists("ann/news", "copy/adapter_model.safetensors")
    api.create_commit("ann/news", [CommitOperationDelete("copy/")], commit_message="y")
    assert not api.file_exists("ann/news", "copy/adapter_model.safetensors")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("ann/news", [CommitOperationAdd("b.json", b"1")], commit_message="z", parent_commit=published)
    with pytest.raises(EntryNotFoundError):
        api.delete_file("nope.json", "ann/news")


def test_a_repeated_upload_makes_no_commit(api: HfApi, published: str, adapter: Path) -> None:
    assert api.upload_folder(repo_id="ann/news", folder_path=adapter).oid == published
    assert len(api.list_repo_commits("ann/news")) == 1


def test_errors_become_the_right_exceptions(api: HfApi, hub: str, published: str) -> None:
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("ann/news", "nope.json", endpoint=hub, token=api.token)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ann/news", "README.md", revision="nope", endpoint=hub, token=api.token)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("ann/nope", "README.md", endpoint=hub, token=api.token)
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("ann/news")
    with pytest.raises(BadRequestError):
        api.create_commit("ann/news", [CommitOperationAdd("a.json", b"{}")], commit_message="pr", create_pr=True)


def test_a_hostile_or_broken_upload_says_what_to_mend(api: HfApi, published: str, adapter: Path) -> None:
    with pytest.raises(HfHubHTTPError, match=r"as a pickle only \(adapter_model\.bin\)"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="adapter_model.bin", repo_id="ann/news")
    with pytest.raises(ValueError, match="not valid YAML"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id="ann/news")
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"target_modules": ["q_proj"]}
    with pytest.raises(HfHubHTTPError, match="silently have no effect"):
        api.upload_file(
            path_or_fileobj=json.dumps(config).encode(), path_in_repo="adapter_config.json", repo_id="ann/news"
        )
    assert api.model_info("ann/news").sha == published


def test_private_repos_look_absent(api: HfApi, hub: str, registry: Registry, published: str) -> None:
    api.update_repo_settings("ann/news", private=True)
    stranger, bob = (
        HfApi(endpoint=hub, token=False),
        HfApi(endpoint=hub, token=create_token(registry.db, "bob", "write")),
    )
    for other in (stranger, bob):
        with pytest.raises(RepositoryNotFoundError):
            other.model_info("ann/news")
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("ann/news", "README.md", endpoint=hub, token=other.token)
        assert list(other.list_models()) == []
    assert [model.id for model in api.list_models()] == ["ann/news"]


def test_writing_is_denied_by_default(api: HfApi, hub: str, registry: Registry, published: str) -> None:
    reader = HfApi(endpoint=hub, token=create_token(registry.db, "ann", "read"))
    bob = HfApi(endpoint=hub, token=create_token(registry.db, "bob", "admin"))
    for other, status in ((HfApi(endpoint=hub, token=False), "401"), (reader, "403"), (bob, "403")):
        with pytest.raises(HfHubHTTPError, match=status):
            other.create_repo("ann/other")
        with pytest.raises(HfHubHTTPError, match=status):
            other.create_commit("ann/news", [CommitOperationAdd("a.json", b"{}")], commit_message="x")
        with pytest.raises(HfHubHTTPError, match=status):
            other.delete_repo("ann/news")
    bob.create_repo("bob/own")


def test_resolve_head_range_and_cache_headers(hub: str, registry: Registry, adapter: Path) -> None:
    revision = registry.publish(adapter, "ann/news")
    url = f"{hub}/ann/news/resolve/main/adapter_model.safetensors"
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    head = httpx.head(url)
    assert int(head.headers["content-length"]) == len(weights)
    assert head.headers["x-repo-commit"] == revision.id and head.headers["etag"].strip('"')
    part = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == weights[10:20]
    assert httpx.get(url, headers={"If-None-Match": head.headers["etag"]}).status_code == 304
    missing = httpx.head(f"{hub}/ann/news/resolve/main/nope")
    assert missing.status_code == 404 and missing.headers["x-error-code"] == "EntryNotFound"
    assert missing.headers["x-repo-commit"] == revision.id


def test_single_user_mode_needs_no_token(hub: str, adapter: Path) -> None:
    api = HfApi(endpoint=hub, token=False)
    api.create_repo("ann/news")
    api.upload_folder(repo_id="ann/news", folder_path=adapter)
    assert api.whoami(token="anything")["name"] == "owner"


def test_a_page_from_elsewhere_can_not_write(hub: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        reply = httpx.post(f"{hub}/api/repos/create", json={"name": "ann/x"}, headers=headers)
        assert reply.status_code == 403 and "another site" in reply.json()["error"]
    assert httpx.get(f"{hub}/api/models", headers={"Host": "evil.example"}).status_code == 400


def test_card_and_file_system(api: HfApi, hub: str, published: str) -> None:
    files = HfFileSystem(endpoint=hub, token=api.token)
    assert "ann/news/README.md" in files.ls("ann/news", detail=False)
    card = ModelCard(files.read_text("ann/news/README.md"))
    assert card.data.base_model == "acme/tiny-llama"


def test_a_long_list_costs_no_more_queries_than_a_short_one(
    hub: str, registry: Registry, tmp_path, lora_folder
) -> None:
    registry.create_repo("ann/empty")
    counts = []
    for number in range(4):
        registry.publish(lora_folder(tmp_path / str(number), seed=number), f"ann/a{number}")
        asked: list[str] = []
        client = create_app(registry).test_client()
        registry.db.conn.set_trace_callback(asked.append)
        found = client.get("/api/models?full=1&limit=1000").json
        registry.db.conn.set_trace_callback(None)
        assert len(found) == number + 2 and {model["sha"] is None for model in found} == {True, False}
        counts.append(len(asked))
    assert len(set(counts)) == 1 and counts[0] < 15


def test_caches_may_keep_what_never_changes_and_everybody_may_see(hub: str, registry: Registry, adapter: Path) -> None:
    commit = registry.publish(adapter, "ann/news").id

    def cache_control(revision: str) -> str:
        return httpx.get(f"{hub}/ann/news/resolve/{revision}/README.md").headers["Cache-Control"]

    assert cache_control(commit) == "public, max-age=3600, immutable"
    assert "no-cache" in cache_control("main") and "no-cache" in cache_control(commit[:9])
    registry.set_private("ann/news", True)
    assert "public" not in cache_control(commit)


def test_a_large_tree_costs_no_more_queries_than_a_small_one(registry: Registry) -> None:
    client, counts = create_app(registry).test_client(), []
    for number in range(1, 31):
        note = Put(f"{number}.txt", registry.blobs.put_bytes(str(number).encode()))
        registry.commit("ann/notes", [note], title=f"Commit {number}", create=True)
        if number not in (2, 30):
            continue
        asked: list[str] = []
        registry.db.conn.set_trace_callback(asked.append)
        tree = client.get("/api/models/ann/notes/tree/main?expand=1").json
        paths = {"paths": [f"{count}.txt" for count in range(1, 31)], "expand": True}
        some = client.post("/api/models/ann/notes/paths-info/main", json=paths).json
        registry.db.conn.set_trace_callback(None)
        counts.append(len(asked))
        assert {entry["path"]: entry["lastCommit"]["title"] for entry in tree} == {
            f"{count}.txt": f"Commit {count}" for count in range(1, number + 1)
        }
        assert some == tree
    assert len(set(counts)) == 1 and counts[0] < 20  # of two requests


@pytest.mark.parametrize(
    "path",
    [
        "/api/adapters?" + "&".join(f"label=l{number}" for number in range(3000)),
        "/api/models?" + "&".join(f"filter=l{number}" for number in range(3000)),
        "/?" + "&".join(f"label=l{number}" for number in range(3000)),
        "/api/models?filter=" + ",".join(f"l{number}" for number in range(3000)),
    ],
    ids=["api", "models", "page", "commas"],
)
def test_thousands_of_filters_find_nothing(registry: Registry, adapter: Path, path: str) -> None:
    registry.publish(adapter, "ann/news")
    reply = create_app(registry).test_client().get(path)
    assert reply.status_code == 200 and "ann/news" not in reply.text


@pytest.mark.parametrize("path", ["/api/adapters?q=", "/api/models?search=", "/?q="])
def test_thousands_of_words_are_too_many(registry: Registry, path: str) -> None:
    client = create_app(registry).test_client()
    assert client.get(path + "+".join(f"w{number}" for number in range(5000))).status_code == 400
    assert client.get(path + "+".join(f"w{number}" for number in range(64))).status_code == 200
