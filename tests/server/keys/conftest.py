"""A hub, as the hub's own tests run it."""

from pathlib import Path

import pytest

from graft.hub.registry.registry import Registry
from tests.hub.conftest import running

__all__ = ["running"]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry.db")
