"""docs/serving.md knows every route, field, option and error there is."""

from graft.server.engine.client import EngineClient
from graft.server.engine.engine import Engine
from graft.server.http.app import create_app
from graft.server.http.openapi.document import document
from tests.conftest import tiny_base
from tests.server.reference import PAGE, written


def test_the_reference_is_that_of_the_code():
    text = PAGE.read_text()
    assert written(text) == text, "python -m tests.server.reference writes it anew"


def test_every_route_is_described():
    with Engine(tiny_base("llama")) as engine:
        rules = create_app(EngineClient(engine)).url_map.iter_rules()
        served = {rule.rule.replace("<path:name>", "{model}") for rule in rules}
    assert served == document("base")["paths"].keys()
