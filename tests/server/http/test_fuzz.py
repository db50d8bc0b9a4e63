"""Whatever fits the description in /openapi.json, and what nearly does, gets an answer that is described, below 500.

The requests are the same each time; `make soak` takes more of them.
"""

import os
from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.app import create_app
from graft.server.http.openapi import document as openapi
from tests.conftest import tiny_base
from tests.server.conftest import write_folder
from tests.server.live import CHAT_TEMPLATE, OPTIONS

CASES = int(os.environ.get("GRAFT_FUZZ_CASES", "5000"))
SHORT = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3, "min_tokens": 0, "n": 2, "best_of": 2}
LIMITS = {"/v1/chat/completions": "max_tokens", "/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens"}
PATHS = openapi.document("base")["paths"]
ASKING = [path for path, methods in PATHS.items() if "requestBody" in next(iter(methods.values()))]
SERVED = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    base = tiny_base("llama")
    base.tokenizer.chat_template = (
        CHAT_TEMPLATE + "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
    )
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", base)
    with Engine(base, {"lora": folder}, None, OPTIONS) as engine:
        yield schemathesis.openapi.from_wsgi("/openapi.json", create_app(EngineClient(engine)))


@pytest.mark.timeout(3600)  # of `make soak`; in `make test` a minute or two
@pytest.mark.parametrize("path", [path for path in PATHS if path != "/openapi.json"])
def test_generated_requests_get_described_answers(described, path: str) -> None:
    [operation] = [one for result in described.get_all_operations() if (one := result.ok()).path == path]
    if path not in ASKING:
        answers_of(operation, GenerationMode.POSITIVE, 5)
        return
    cases = CASES // (2 * len(ASKING))
    found = answers_of(operation, GenerationMode.POSITIVE, cases) + answers_of(
        operation, GenerationMode.NEGATIVE, cases
    )
    assert path not in SERVED or found[200] > 5, found


def answers_of(operation, mode: GenerationMode, cases: int) -> Counter[int]:
    """Statuses of the answers to generated requests, each checked against the description."""
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
        response = case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])
        assert b'"internal_error"' not in response.content  # of a stream that broke
        statuses[response.status_code] += 1

    check()
    return statuses
