"""Whatever fits the description in /openapi.json, and what nearly does, gets an answer that is described, below 500.

The requests are the same each time; `make soak` takes more of them. Some of them go to a server that asks for keys, with a good
one, one that is not for this, a wrong one, or none.
"""

import os
from collections import Counter
from collections.abc import Mapping

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.access.routes import Need
from graft.server.http.app import create_app
from graft.server.http.openapi import document as openapi
from graft.server.http.openapi.routes import ROUTES
from graft.server.keys.access import Access
from graft.server.keys.key_file import KeyFile
from graft.server.keys.keyring import Keyring
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.keys.made import bearing, write_keys
from tests.server.live import CHAT_TEMPLATE, OPTIONS

CASES = int(os.environ.get("GRAFT_FUZZ_CASES", "5000"))
SHORT = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "min_tokens": 0, "n": 2, "best_of": 2}
LIMITS = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}
PATHS = openapi.document("base")["paths"]
ASKING = [path for path, methods in PATHS.items() if "requestBody" in next(iter(methods.values()))]
SERVED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
KEYS = {"admin": {"admin": True}, "plain": {}, "other": {"adapters": ["other"], "base": False}}
NO_KEY: Mapping[str, str] = {}
WRONG = {"none": NO_KEY, "wrong": bearing("sk-graft-wrong"), "odd": {"x-api-key": "'; \t--"}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    base = tiny_base("llama")
    base.tokenizer.chat_template = (
        CHAT_TEMPLATE + "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
    )
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", base)
    with Engine(base, {"lora": folder}, None, OPTIONS) as running:
        yield EngineClient(running)


@pytest.fixture(scope="module")
def described(engine):
    return schemathesis.openapi.from_wsgi("/openapi.json", create_app(engine))


@pytest.fixture(scope="module")
def keyed(engine, tmp_path_factory):
    """The same where keys are asked for, and the headers that show one, by what it is good for."""
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    made = {name: bearing(key) for name, key in write_keys(file, KEYS).items()}
    access = Access(Keyring(KeyFile(file, has_hub=False), None))
    return schemathesis.openapi.from_wsgi("/openapi.json", create_app(engine, open_access=lambda: access)), WRONG | made


def operation_at(schema, path: str):
    [operation] = [one for result in schema.get_all_operations() if (one := result.ok()).path == path]
    return operation


@pytest.mark.timeout(3600)  # of `make soak`; in `make test` a minute or two
@pytest.mark.parametrize("path", [path for path in PATHS if path != "/openapi.json"])
def test_generated_requests_get_described_answers(described, path: str) -> None:
    operation = operation_at(described, path)
    if path not in ASKING:
        answers_of(operation, GenerationMode.POSITIVE, 5)
        return
    cases = CASES // (2 * len(ASKING))
    found = answers_of(operation, GenerationMode.POSITIVE, cases) + answers_of(
        operation, GenerationMode.NEGATIVE, cases
    )
    assert path not in SERVED or found[200] > 5, found


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", [path for path in PATHS if path != "/openapi.json"])
def test_with_keys_too(keyed, path: str) -> None:
    """Who shows none that is good for it gets nowhere, whatever else is asked."""
    schema, shown = keyed
    operation, need = operation_at(schema, path), ROUTES[path].need
    nowhere = {404} if "{model}" in path else set()  # some names lead to no route
    for kind, headers in shown.items():
        found = answers_of(operation, GenerationMode.POSITIVE, max(8, CASES // (50 * len(ASKING))), headers)
        denied = 401 if kind in WRONG else 403 if kind != "admin" and need in (Need.ADMIN, Need.METRICS) else None
        if need is not Need.NOTHING and denied is not None:
            assert denied in found and found.keys() <= {denied} | nowhere, (kind, found)
        else:
            assert found and 401 not in found, (kind, found)


def answers_of(operation, mode: GenerationMode, cases: int, shown: Mapping[str, str] = NO_KEY) -> Counter[int]:
    """Statuses of the answers to generated requests, each checked against the description. `shown`: headers that show a key."""
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    def check(case) -> None:
        if isinstance(case.body, dict):  # answers are short, so that time goes into what is asked
            short = {
                key: value for key, value in SHORT.items() if key in case.body or key == LIMITS.get(operation.path)
            }
            case.body.update(short | {"model": "lora"})
        for header in ("Authorization", "x-api-key"):  # as they are described
            case.headers.pop(header, None)
        response = case.call_and_validate(headers=shown, checks=CHECKS)
        assert b'"internal_error"' not in response.content  # of a stream that broke
        statuses[response.status_code] += 1

    check()
    return statuses
