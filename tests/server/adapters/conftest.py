"""A registry, and a hub over it, without torch."""

from tests.hub.conftest import adapter, hub, lora_folder_fixture, registry, running, spec

__all__ = ["adapter", "hub", "lora_folder_fixture", "registry", "running", "spec"]
