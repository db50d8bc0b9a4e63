"""What a write token and the code in hand could do to a hub, tried over HTTP: each was found so once."""

import base64
import hashlib
import json
import time
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from werkzeug.test import Client

from graft.hub.cli.main import main
from graft.hub.errors import ConflictError
from graft.hub.registry import audit
from graft.hub.registry import registry as registry_module
from graft.hub.registry.access.quotas import measure_usage
from graft.hub.registry.access.tokens import create_token, first_admin, revoke_tokens
from graft.hub.registry.commits import commit as committing
from graft.hub.registry.commits.changes import Put
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.storage.database import Database
from graft.hub.registry.storage.schema import write_transaction
from graft.hub.web.app import create_app

OWN = "/api/models/mallory/own"
HEADER = {"key": "header", "value": {"summary": "x"}}


@pytest.fixture
def mallory(registry: Registry, adapter: Path) -> Client:
    """A client with a write token, and an adapter of their own."""
    first_admin(registry.db, "ann")
    client = create_app(registry).test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {create_token(registry.db, 'mallory', 'write')}"
    registry.publish(adapter, "mallory/own", user="mallory")
    return client


def body(*lines: object) -> bytes:
    return b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"


def test_tags_beside_a_commit_are_few_counted_and_written_down(mallory: Client, registry: Registry) -> None:
    """15,000 in one header held the write lock for 14 s, in 20 MB of rows that no quota and no audit knew of."""
    before = measure_usage(registry.db, "mallory").bytes
    many = ",".join(f"t{number}" for number in range(21))
    assert mallory.post(f"{OWN}/commit/main", data=body(HEADER), headers={"X-Graft-Tags": many}).status_code == 413
    assert [ref.kind for ref in registry.all_refs("mallory/own")] == ["branch"]
    few = mallory.post(f"{OWN}/commit/main", data=body(HEADER), headers={"X-Graft-Tags": "a,b"})
    assert few.status_code == 200 and few.json["commitOid"] == registry.resolve("mallory/own@b").id
    deeds = [(deed.action, deed.subject) for deed in audit.entries(registry.db, who="mallory", limit=2)]
    assert deeds == [("tag.create", "mallory/own@b"), ("tag.create", "mallory/own@a")]
    assert measure_usage(registry.db, "mallory").bytes >= before + 4000
    assert mallory.post(f"{OWN}/commit/main", data=body(HEADER), headers={"X-Graft-Tags": "a,b"}).status_code == 200
    assert audit.entries(registry.db, who="mallory", limit=1)[0].subject == "mallory/own@b"  # nothing new was done


def test_a_repo_of_many_refs_names_a_few(mallory: Client, registry: Registry) -> None:
    for number in range(30):
        registry.create_ref("mallory/own", "tag", f"t{number:02d}")
    said = mallory.get("/api/resolve?name=mallory/own@nowhere").json["error"]
    assert "t18" in said and "t19" not in said and said.endswith("and more.")


def test_an_lfs_batch_is_as_large_as_clients_make_it(mallory: Client) -> None:
    """40,000 objects of 8 GiB were 5 million links, minutes and gigabytes of an answer."""
    objects = [{"oid": hashlib.sha256(b"%d" % number).hexdigest(), "size": 100 << 20} for number in range(257)]
    asked = {"operation": "upload", "transfers": ["multipart"], "objects": objects}
    assert mallory.post("/mallory/own.git/info/lfs/objects/batch", json=asked).status_code == 400
    asked["objects"] = objects[1:]
    assert len(mallory.post("/mallory/own.git/info/lfs/objects/batch", json=asked).json["objects"]) == 256


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", f"{OWN}/preupload/main", {"files": [{"path": "a\rb", "size": 1, "sample": "***"}]}),
        ("POST", f"{OWN}/preupload/main", {"files": [{"path": "a\r\nX-Evil: 1.bin", "size": 1}]}),
        ("POST", f"{OWN}/commit/main", body(HEADER, {"key": "deletedFile", "value": {"path": "a\rb"}})),
        ("POST", f"{OWN}/commit/main", body({"key": "header", "value": {"summary": "x", "parentCommit": "\r"}})),
        ("POST", f"{OWN}/commit/main", body(b'{"key": "header", "value": {"summary": "\\ud800"}}')),
        ("POST", f"{OWN}/commit/main", body(b'{"key": "deletedFile", "value": {"path": "\\ud800"}}')),
        ("POST", f"{OWN}/commit/main", body(b'{"key": "file", "value": {"path": "a.txt", "content": "\\ud800"}}')),
        ("POST", f"{OWN}/commit/main", b'{"key": "header", "value": {"summary": "\xff"}}\n'),
        ("GET", "/api/x%0dy", None),
        ("GET", f"/api/evaluations/{10**40}", None),
        ("GET", f"/api/evaluations/{2**63 - 1}", None),
        ("GET", "/api/evaluations/1%0d", None),
        ("GET", "/api/tasks/news/data?hash=a%0db", None),
    ],
)
def test_no_words_of_a_stranger_break_an_answer(mallory: Client, method: str, path: str, sent: object) -> None:
    """A line's end in a header, half a character in a table, a number beyond a row's: each was a 500."""
    reply = mallory.open(path, method=method, **({"data": sent} if isinstance(sent, bytes) else {"json": sent}))
    assert reply.status_code < 500, reply.text
    assert (
        not any(control in value for value in reply.headers.values() for control in "\r\n")
        and "X-Evil" not in reply.headers
    )


@pytest.mark.parametrize(
    "value", ["!!timestamp x", "!!bool x", '!!float ""', '!!int ""', "!!binary x", "!!omap [1]", "!!set 1"]
)
@pytest.mark.parametrize("card", ["a: {}", "? {}\n: 1"])
def test_a_tag_that_lies_is_no_valid_card(mallory: Client, value: str, card: str) -> None:
    reply = mallory.post("/api/validate-yaml", json={"content": f"---\n{card.format(value)}\n---\n"})
    assert reply.status_code == 400 and "not valid YAML" in reply.text, reply.text


@pytest.mark.parametrize(
    "front_matter",
    [
        "a: [" + "{}," * 20_000 + "]",
        "".join(f"k{n}:\n" for n in range(8000)),
        "[" * 60_000,
    ],
    ids=["flow", "keys", "brackets"],
)
def test_front_matter_is_read_in_bounded_time(mallory: Client, front_matter: str) -> None:
    """64 KiB of it took a thread of the hub for more than a second, and whoever sent it no token."""
    reply = mallory.post("/api/validate-yaml", json={"content": f"---\n{front_matter}\n---\n"})
    assert reply.status_code == 400 and "it has more than" in reply.text


def test_completing_an_upload_tells_nothing_of_what_others_store(mallory: Client, registry: Registry) -> None:
    """Where no part had come, the answer said whether the bytes lay in somebody's private repo."""
    said = []
    for stored in (registry.blobs.put_bytes(b"a secret").sha256, "0" * 64):
        asked = {"operation": "upload", "transfers": ["multipart"], "objects": [{"oid": stored, "size": 100 << 20}]}
        offered = mallory.post("/mallory/own.git/info/lfs/objects/batch", json=asked).json["objects"][0]
        link = offered["actions"]["upload"]["href"]
        said.append(mallory.post(link[link.index("/lfs/") :]).status_code)
    assert said == [409, 409]


def test_a_file_that_gc_took_is_asked_for_again(registry: Registry) -> None:
    """With no grace it may go between its upload and its commit; that was a 500 which advised to restore a backup."""
    card = registry.blobs.put_bytes(b"# A card")
    registry.blobs.remove(card.sha256)
    with pytest.raises(ConflictError, match="upload the file again"):
        registry.commit("mallory/new", [Put("README.md", card)], title="x", create=True)


def test_gc_goes_on_beside_uploads(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that came to its end between two looks at it ended gc with a traceback: half of the runs beside six clients."""
    gone, listed = registry.blobs.incoming / "tmp-of-an-upload", Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: [*([gone] if path == gone.parent else ()), *listed(path)])
    assert collect(registry, 0.0).leftovers == 0


@pytest.mark.parametrize(
    "history",
    [
        f'[{{"step": 1{"0" * 400}, "loss": 1}}, {{"step": 2, "loss": 1}}]',
        '[{"step": 1e300, "loss": 1}, {"step": 1e300, "loss": 1}]',
        '[{"step": 1, "loss": 1.7e308}, {"step": 2, "loss": -1.7e308}]',
        '[{"step": 1, "loss": 1e-322}, {"step": 2, "loss": 2e-322}, {"step": 999999999999.9, "loss": 0}]',
        '[{"step": true, "loss": false}, {"step": 1, "loss": 1}]',
    ],
)
def test_no_training_history_breaks_its_page(mallory: Client, registry: Registry, history: str) -> None:
    put = Put("graft.json", registry.blobs.put_bytes(b'{"history": %s}' % history.encode()))
    registry.commit("mallory/own", [put], title="x", user="mallory")
    assert mallory.get("/mallory/own").status_code == 200


def test_a_card_claims_a_hundred_scores_at_most(registry: Registry, tmp_path: Path, lora_folder) -> None:
    claims = ", ".join(["{value: 1}"] * 3000)
    card = f"---\nmodel-index: [{{results: [{{metrics: [{claims}]}}]}}]\n---\n"
    registry.publish(lora_folder(tmp_path / "claims", card=card), "mallory/own")
    assert len(registry.evaluations("mallory/own")) == 100


def test_a_long_card_is_shown_as_it_is(mallory: Client, registry: Registry) -> None:
    card = Put("README.md", registry.blobs.put_bytes(b"<script>![" * 100_000))
    registry.commit("mallory/own", [card], title="x", user="mallory")
    began = time.monotonic()
    page = mallory.get("/mallory/own").text
    assert time.monotonic() - began < 5 and "&lt;script&gt;![" in page and "<script>!" not in page


def test_many_patterns_take_no_longer_than_one(mallory: Client, registry: Registry, adapter: Path) -> None:
    """60,000 of them took minutes of a thread, at each commit."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["rank_pattern"] = {f"k{number}(a|b)*": 4 for number in range(60_000)}
    content = base64.b64encode(json.dumps(config).encode()).decode()
    file = {"key": "file", "value": {"content": content, "path": "adapter_config.json", "encoding": "base64"}}
    began = time.monotonic()
    refused = mallory.post(f"{OWN}/commit/main", data=body(HEADER, file))
    assert refused.status_code == 422 and "too complex" in refused.text, refused.text
    assert time.monotonic() - began < 15


def test_strangers_words_do_not_drive_a_terminal(registry: Registry, adapter: Path) -> None:
    registry.publish(adapter, "mallory/own", message="harmless\x1b]0;owned\x07\x1b[2J")
    ran = CliRunner().invoke(main, ["history", "mallory/own", "--registry", str(registry.path)])
    assert ran.exit_code == 0 and "harmless" in ran.output and not {"\x1b", "\x07"} & set(ran.output)
    ran = CliRunner().invoke(main, ["pull", "mallory/\x1b[2Jx", "--registry", str(registry.path), "--out", "x"])
    assert ran.exit_code == 1 and "\x1b" not in ran.output


SHARED, CLAIM = "team/shared", {"task": "news-topic", "data_hash": "x", "metric": "accuracy", "value": 1.0, "n": 3}
WRITES = {
    "commit": ("POST", f"/api/models/{SHARED}/commit/main", {"data": body(HEADER, {"key": "deletedFile", "value": {"path": "README.md"}})}),
    "tag": ("POST", f"/api/models/{SHARED}/tag/main", {"json": {"tag": "mine"}}),
    "branch": ("POST", f"/api/models/{SHARED}/branch/mine", {}),
    "untag": ("DELETE", f"/api/models/{SHARED}/tag/v1", {}),
    "settings": ("PUT", f"/api/models/{SHARED}/settings", {"json": {"private": True}}),
    "move": ("POST", "/api/repos/move", {"json": {"fromRepo": SHARED, "toRepo": "mallory/taken"}}),
    "delete": ("DELETE", "/api/repos/delete", {"json": {"name": SHARED}}),
    "promote": ("PUT", f"/api/adapters/{SHARED}/aliases/production", {"json": {"revision": "v1"}}),
    "roll back": ("POST", f"/api/adapters/{SHARED}/aliases/best/rollback", {"json": {}}),
    "claim": ("POST", "/api/evaluations", {"json": CLAIM | {"repo": SHARED}}),
    "promote on the page": ("POST", f"/{SHARED}/promote", {"data": {"alias": "production", "revision": "v1"}}),
}  # fmt: skip


@pytest.fixture
def shared(mallory: Client, registry: Registry, lora_folder, tmp_path: Path) -> Client:
    """`mallory`, with a namespace that is shared with bob, who keeps an adapter of two versions there."""
    create_token(registry.db, "bob", "write", namespaces=["team"])
    create_token(registry.db, "mallory", "write", namespaces=["team"])
    registry.add_task("news-topic", "accuracy", b'{"prompt": "a", "completion": "b"}\n', "")
    for version in (1, 2):
        folder = lora_folder(tmp_path / f"shared{version}", seed=version)
        registry.publish(folder, SHARED, user="bob", tags=[f"v{version}"])
        registry.promote(f"{SHARED}@v{version}", "best", who="bob")
    return mallory


def told(registry: Registry) -> tuple[object, ...]:
    """Everything that is said of bob's adapter, once it is his alone."""
    moves, claims = registry.history("bob/alone"), registry.evaluations("bob/alone")
    return registry.repo("bob/alone"), registry.all_refs("bob/alone"), moves, claims


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_who_may_write_is_asked_where_it_is_written(
    shared: Client, registry: Registry, monkeypatch: pytest.MonkeyPatch, write: str, private: bool
) -> None:
    """A third of the commits to a shared name, sent while its owner moved the repo to a name of his own, got into that."""
    before: list[object] = []

    def move_first(db: Database) -> AbstractContextManager[None]:
        monkeypatch.undo()
        registry.move_repo(SHARED, "bob/alone", user="bob")
        registry.set_private("bob/alone", private, user="bob")
        before.append(told(registry))
        return write_transaction(db)

    for module in (registry_module, committing):
        monkeypatch.setattr(module, "write_transaction", move_first)
    method, path, sent = WRITES[write]
    reply = shared.open(path, method=method, **sent)
    assert before and reply.status_code == (404 if private else 403), reply.text
    assert told(registry) == before[0]


@pytest.mark.parametrize("write", WRITES)
def test_a_token_is_good_until_the_write_itself(
    mallory: Client, registry: Registry, monkeypatch: pytest.MonkeyPatch, adapter: Path, write: str
) -> None:
    """One that was revoked while a body was stored, or while others wrote, wrote all the same."""
    registry.publish(adapter, "bob/alone", user="bob", tags=["v1"])
    theft = create_token(registry.db, "bob", "write")
    before = told(registry)

    def revoke_first(db: Database) -> AbstractContextManager[None]:
        monkeypatch.undo()
        assert revoke_tokens(registry.db, "bob", token=theft)
        return write_transaction(db)

    for module in (registry_module, committing):
        monkeypatch.setattr(module, "write_transaction", revoke_first)
    method, path, sent = WRITES[write]
    sent = (
        json.loads(json.dumps(sent).replace(SHARED, "bob/alone").replace("mallory/", "bob/"))
        if "json" in sent
        else sent
    )
    path = path.replace(SHARED, "bob/alone")
    reply = mallory.open(path, method=method, headers={"Authorization": f"Bearer {theft}"}, **sent)
    assert reply.status_code == 401 and told(registry) == before, reply.text


def test_an_earlier_name_is_no_way_into_a_repo(shared: Client, registry: Registry, adapter: Path) -> None:
    """The page that publishes asked for the name alone, which leads on to the repo that once had it."""
    registry.move_repo(SHARED, "bob/alone", user="bob")
    before = told(registry)
    files = [(BytesIO(path.read_bytes()), path.name) for path in sorted(adapter.iterdir())]
    reply = shared.post("/publish", data={"name": SHARED, "files": files}, content_type="multipart/form-data")
    assert reply.status_code == 403 and told(registry) == before
