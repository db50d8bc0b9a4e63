"""What any version of the Hugging Face client must be able to do with a hub. Run by that client's own Python:

    HF_ENDPOINT=http://... HF_TOKEN=... python client_calls.py FOLDER_OF_AN_ADAPTER

Uses nothing but the client and the standard library; ends with exit code 0 when all of it held.
"""

import sys
import tempfile
from pathlib import Path

import huggingface_hub
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
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


def refused(error, call, *arguments, **named):
    """The call must raise `error`."""
    try:
        call(*arguments, **named)
    except error:
        return
    raise AssertionError(f"{call.__name__}{arguments}{named} did not raise {error}")


def main(folder: Path) -> None:
    api, space = HfApi(), f"ann/v{huggingface_hub.__version__.replace('.', '-')}"
    name = f"{space}-news"
    assert api.whoami()["name"] == "ann"

    # Repos and uploads
    api.create_repo(name, private=True)
    api.create_repo(name, exist_ok=True)
    refused(HfHubHTTPError, api.create_repo, name)
    first = api.upload_folder(repo_id=name, folder_path=folder, commit_message="First").oid
    assert api.upload_folder(repo_id=name, folder_path=folder).oid == first
    second = api.upload_file(
        path_or_fileobj=b"{}", path_in_repo="sub/x.json", repo_id=name, commit_message="Second"
    ).oid
    # What is no part of an adapter is left out (and named), by the protocol's own means.
    assert api.upload_file(path_or_fileobj=b"x", path_in_repo="x.bin", repo_id=name).oid == second
    refused(HfHubHTTPError, api.upload_file, path_or_fileobj=b"{", path_in_repo="adapter_config.json", repo_id=name)
    add = CommitOperationAdd("y.json", b"1")
    refused(HfHubHTTPError, api.create_commit, name, [add], commit_message="stale", parent_commit=first)
    copy = CommitOperationCopy("adapter_model.safetensors", "copy/adapter_model.safetensors")
    api.create_commit(name, [copy], commit_message="copy", parent_commit=second)
    assert api.file_exists(name, "copy/adapter_model.safetensors")
    api.create_commit(
        name, [CommitOperationDelete("copy/"), CommitOperationDelete("sub/x.json")], commit_message="tidy"
    )

    # Reading
    info = api.model_info(name, files_metadata=True)
    assert info.private and {s.rfilename for s in info.siblings} == {path.name for path in folder.iterdir()}
    assert [m.id for m in api.list_models(filter=["task:news-topic", "lora"], author="ann", search=name)] == [name]
    assert len(list(api.list_models(author="ann", sort="downloads", limit=1))) == 1
    assert api.repo_exists(name) and api.revision_exists(name, first) and not api.revision_exists(name, "nope")
    assert {e.path for e in api.list_repo_tree(name, recursive=True)} == {path.name for path in folder.iterdir()}
    assert api.get_paths_info(name, ["adapter_model.safetensors"])[0].lfs.sha256
    assert [c.title for c in api.list_repo_commits(name)][-1] == "First"
    with tempfile.TemporaryDirectory() as cache:
        local = Path(snapshot_download(name, cache_dir=cache))
        for path in folder.iterdir():
            assert (local / path.name).read_bytes() == path.read_bytes()
        assert Path(snapshot_download(name, revision=first, cache_dir=cache)).name == first
        assert Path(hf_hub_download(name, "README.md", cache_dir=cache)).read_text()
        refused(EntryNotFoundError, hf_hub_download, name, "nope.json", cache_dir=cache)
        refused(RevisionNotFoundError, hf_hub_download, name, "README.md", revision="nope", cache_dir=cache)
        refused(RepositoryNotFoundError, hf_hub_download, "ann/nope", "README.md", cache_dir=cache)
        refused(RepositoryNotFoundError, HfApi(token=False).model_info, name)
        refused(RepositoryNotFoundError, hf_hub_download, name, "README.md", cache_dir=f"{cache}/other", token=False)
    assert ModelCard.load(name).data.base_model == "acme/tiny-llama"
    assert f"{name}/README.md" in HfFileSystem().ls(name, detail=False)

    # Refs, settings, names
    api.create_tag(name, tag="v1", revision=first)
    api.create_branch(name, branch="try/it", revision="v1")
    refs = api.list_repo_refs(name)
    assert [t.name for t in refs.tags] == ["v1"] and {b.name for b in refs.branches} == {"main", "try/it"}
    assert api.model_info(name, revision="try/it").sha == first
    api.upload_file(path_or_fileobj=b"2", path_in_repo="z.json", repo_id=name, revision="try/it")
    api.delete_branch(name, branch="try/it")
    api.delete_tag(name, tag="v1")
    api.update_repo_settings(name, private=False)
    assert not HfApi(token=False).model_info(name).private
    refused(HfHubHTTPError, HfApi(token=False).delete_repo, name)
    api.move_repo(name, f"{name}-moved")
    assert api.model_info(name).id == f"{name}-moved"
    api.delete_repo(f"{name}-moved")
    assert not api.repo_exists(name)

    # Bytes in memory, which some versions would rather send by LFS

    api.create_repo(f"{space}-more")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    api.upload_file(path_or_fileobj=weights, path_in_repo="adapter_model.safetensors", repo_id=f"{space}-more")
    print("ok", huggingface_hub.__version__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
