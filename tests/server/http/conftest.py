"""What the tests of the HTTP interface share."""

import pytest

from graft.hub.base.model import Base
from tests.server.http.learned import learned_base


@pytest.fixture(scope="session")
def learned() -> Base:
    return learned_base()
