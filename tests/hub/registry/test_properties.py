"""Properties: a registry against a model in memory, and strange requests that must never be our own failure."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from graft.hub.errors import ArtifactError, ConflictError, GraftError, RepoNotFoundError
from graft.hub.registry.commits.accepted_files import check_path
from graft.hub.registry.commits.changes import Delete, Put
from graft.hub.registry.maintenance.check import check
from graft.hub.registry.maintenance.garbage import collect
from graft.hub.registry.registry import Registry
from graft.hub.registry.search import Query
from graft.hub.web.app import create_app

NAMES = st.sampled_from([f"{space}/{name}" for space in ("ann", "bob") for name in ("a", "b", "c")])
PATHS = st.sampled_from(["a.txt", "b.json", "sub/c.md", "sub/d.md"])
CONTENTS = st.binary(max_size=40).filter(
    lambda data: not data.startswith((b"PK", b"\x80", b"\x1f", b"MZ", b"#!", b"\x7f"))
)


class RegistryMachine(RuleBasedStateMachine):
    """Repos, commits, tags, aliases, moves and deletions, each step compared with plain dictionaries."""

    registry: Registry | None = None  # hypothesis checks the invariants before the set-up too
    commits = Bundle("commits")

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.registry = Registry(Path(self.folder.name) / "registry.db")
        self.trees: dict[str, dict[str, bytes]] = {}  # commit -> content
        self.heads: dict[str, str | None] = {}
        self.aliases: dict[tuple[str, str], list[str]] = {}
        self.used: set[str] = set()
        self.moved: dict[str, str] = {}

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        if name in self.used:
            with pytest.raises(ConflictError):
                self.registry.create_repo(name)
            return
        self.registry.create_repo(name)
        self.heads[name] = None
        self.used.add(name)

    @rule(target=commits, name=NAMES, path=PATHS, content=CONTENTS)
    def put(self, name: str, path: str, content: bytes) -> tuple[str, str] | None:
        blob = self.registry.blobs.put_bytes(content)
        if name not in self.heads:
            if name not in self.moved:  # a moved name leads to the new one
                with pytest.raises(RepoNotFoundError):
                    self.registry.commit(name, [Put(path, blob)], title="put")
            return None
        before = self.trees.get(self.heads[name] or "", {})
        made = self.registry.commit(name, [Put(path, blob)], title="put")
        if before.get(path) == content:
            assert made.id == self.heads[name]
        else:
            assert made.parent == self.heads[name]
            self.trees[made.id] = before | {path: content}
            self.heads[name] = made.id
        return name, made.id

    @rule(name=NAMES, path=PATHS)
    def delete_file(self, name: str, path: str) -> None:
        head = self.heads.get(name)
        if head is None:
            return
        before = self.trees[head]
        if path not in before:
            with pytest.raises(GraftError):
                self.registry.commit(name, [Delete(path)], title="delete")
            return
        made = self.registry.commit(name, [Delete(path)], title="delete")
        self.trees[made.id] = {key: value for key, value in before.items() if key != path}
        self.heads[name] = made.id

    @rule(commit=commits, tag=st.sampled_from(["v1", "v2"]))
    def tag(self, commit: tuple[str, str] | None, tag: str) -> None:
        if commit is None or commit[0] not in self.heads:
            return
        name, revision = commit
        if (name, tag) in self.aliases:
            with pytest.raises(ConflictError):
                self.registry.create_ref(name, "tag", tag, revision)
            return
        self.registry.create_ref(name, "tag", tag, revision)
        self.aliases[name, tag] = [revision]

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        if name not in self.heads:
            return
        self.registry.delete_repo(name)
        if self.heads.pop(name) is None and name not in self.moved.values():
            self.used.remove(name)
        self.aliases = {key: value for key, value in self.aliases.items() if key[0] != name}

    @rule(name=NAMES, new=NAMES)
    def move(self, name: str, new: str) -> None:
        if name not in self.heads:
            return
        if new in self.used and self.moved.get(new) != name:  # its own earlier name, a repo may take back
            with pytest.raises(ConflictError):
                self.registry.move_repo(name, new)
            return
        self.registry.move_repo(name, new)
        self.used.add(new)
        self.heads[new] = self.heads.pop(name)
        self.moved.pop(new, None)
        self.moved = {old: new if at == name else at for old, at in self.moved.items()} | {name: new}
        self.aliases = {(new if key[0] == name else key[0], key[1]): value for key, value in self.aliases.items()}

    @rule(commit=consumes(commits))
    def collect(self, commit: tuple[str, str] | None) -> None:
        collect(self.registry, grace_s=0)

    @invariant()
    def agrees(self) -> None:
        if self.registry is None:
            return
        listed = {entry.name: entry.revision_id or None for entry in self.registry.search(Query(limit=100)).entries}
        assert listed == self.heads
        for name, head in self.heads.items():
            if head is not None:
                tree = self.registry.tree(self.registry.resolve(name).id)
                assert {path: self.registry.blobs.read(sha256) for path, sha256 in tree.items()} == self.trees[head]
        for (name, tag), [revision] in self.aliases.items():
            assert self.registry.resolve(f"{name}@{tag}").id == revision

    def teardown(self) -> None:
        if self.registry is not None:
            assert check(self.registry).problems == ()
            self.registry.close()
            self.folder.cleanup()


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(st.text(max_size=60))
def test_a_path_is_refused_or_stays_in_its_folder(path: str) -> None:
    try:
        check_path(path)
    except ArtifactError:
        return
    root = Path("/repo")
    assert (root / path).resolve().is_relative_to(root) and (root / path).resolve() != root


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["header", "file", "lfsFile", "deletedFile", "deletedFolder", "x"])
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "path": st.sampled_from(["a.txt", "../a.txt", "README.md", "adapter_config.json", "a\0.txt"]) | JSON,
        "content": st.sampled_from(["e30=", "!!", "LS0tCmE6IFsKLS0tCg=="]) | JSON,
        "encoding": st.sampled_from(["base64", "utf-8"]) | JSON,
        "oid": st.just("0" * 64) | JSON,
        "parentCommit": JSON,
        "summary": JSON,
    },
)
LINES = st.builds(lambda key, value: json.dumps({"key": key, "value": value}).encode(), KEYS, VALUES | JSON)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES | st.binary(max_size=40), max_size=4))
def test_strange_commits_are_refused_politely(registry: Registry, lines: list[bytes]) -> None:
    client = create_app(registry).test_client()
    client.post("/api/repos/create", json={"name": "ann/fuzz"})
    reply = client.post("/api/models/ann/fuzz/commit/main", data=b"\n".join(lines))
    assert reply.status_code < 500, reply.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.text(alphabet=st.characters(codec="utf-8"), max_size=40).map(
        lambda text: "/" + text.lstrip("/")
    ),  # after "//" the test client reads a host
    headers=st.dictionaries(
        st.sampled_from(
            ["Authorization", "Range", "If-None-Match", "X-Request-Id", "Content-Type", "Origin", "Accept"]
        ),
        st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    ),
    method=st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE"]),
)
def test_strange_requests_are_refused_politely(registry: Registry, path: str, headers: dict, method: str) -> None:
    reply = create_app(registry).test_client().open(path, method=method, headers=headers)
    assert reply.status_code < 500, (path, reply.text)


def test_the_documented_api_holds(registry: Registry, adapter: Path) -> None:
    """Requests made from /openapi.json: no failure of our own, and every answer is as it is described there."""
    registry.publish(adapter, "ann/news")
    registry.add_task("news-topic", "accuracy", b'{"prompt": "a", "completion": "b"}\n', "")
    schema = schemathesis.openapi.from_wsgi("/openapi.json", create_app(registry))
    for operation in schema.get_all_operations():
        _call_with_anything(operation.ok())


def _call_with_anything(operation: Any) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def call(case: Any) -> None:
        response = case.call()
        assert response.status_code < 500, response.text
        assert str(response.status_code) in operation.definition.raw["responses"], response.text
        case.validate_response(response, checks=(response_schema_conformance, content_type_conformance))

    call()
