"""The hub's fixtures, for adapters as other tools leave them."""

from tests.hub.conftest import (
    adapter,
    base_spec_fixture,
    hub,
    lora_folder_fixture,
    registry,
    running,
    spec,
)

__all__ = ["adapter", "base_spec_fixture", "hub", "lora_folder_fixture", "registry", "running", "spec"]
