"""`priority` on every route that asks the engine for something, as far as the engine."""

import pytest

from tests.server.conftest import write_folder
from tests.server.http.learned import ASK, BASE
from tests.server.live import serving

ROUTES = {
    "/v1/completions": {"model": BASE, "prompt": ["a", "b"], "max_tokens": 2},
    "/v1/chat/completions": {"model": BASE, "messages": ASK, "max_tokens": 2, "n": 2},
    "/v1/responses": {"model": "lora", "input": "sum", "max_output_tokens": 2},
    "/v1/messages": {"model": BASE, "messages": ASK, "max_tokens": 2},
    "/v1/embeddings": {"model": "lora", "input": ["a", "b"]},
}


@pytest.fixture(scope="module")
def live(learned, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("adapters") / "lora", "lora", learned)
    with serving(learned, {"lora": folder}) as running:
        yield running


@pytest.fixture
def asked(live, monkeypatch):
    """Requests that have reached the engine."""
    seen, submit = [], live.engine.submit

    def look(request, *rest):
        seen.append(request)
        return submit(request, *rest)

    monkeypatch.setattr(live.engine, "submit", look)
    return seen


@pytest.mark.parametrize(("path", "body"), ROUTES.items())
@pytest.mark.parametrize("priority", [-3, 0, 5, None])
def test_a_priority_reaches_the_engine(live, asked, path, body, priority) -> None:
    reply = live.post(path, body | {"priority": priority})
    assert reply.status == 200 and "X-Ignored-Fields" not in reply.headers, reply.data
    assert asked and {one.priority for one in asked} == {priority or 0}


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("wrong", ["1", 1.5, True, 1 << 63, -(1 << 63) - 1, [1]])
def test_what_is_no_priority_is_refused_by_name(live, asked, path, wrong) -> None:
    reply = live.post(path, ROUTES[path] | {"priority": wrong})
    error = reply.json["error"]
    assert reply.status == 400 and "priority" in error["message"] and error.get("param", "priority") == "priority"
    assert not asked
