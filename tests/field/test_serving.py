"""What `graft serve` and `graft hub serve` find out before they say that they are ready."""

import socket

import pytest

from graft.hub.machine.free_memory import free_memory
from tests.field.conftest import graft, refused


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_server_finds_mistakes_before_it_loads_the_base(place, taken):
    def serve(*words: object):
        result = graft("serve", "--base", place / "base", *words)
        assert "loading" not in result.output
        return result

    refused(serve("--port", taken), f"Can't listen on 127.0.0.1:{taken}", "choose another --port")
    refused(serve("--adapter", f"x={place / 'none'}"), "there is no folder")
    refused(serve("--adapter", f"x={place / 'plain'}"), "holds no adapter_config.json")
    refused(serve("--registry", place / "none.db"), "There is no registry at")


def test_a_cache_larger_than_the_memory_is_refused(place):
    free = free_memory()
    for words in (("--kv-bytes", "900000G"), ("--kv-bytes", f"{free // 2}", "--adapter-host-bytes", f"{free}")):
        result = graft("serve", "--base", place / "base", *words)
        refused(
            result, f"--kv-bytes {'900000.0' if '900000G' in words else ''}", "GiB of memory that are free", "Give less"
        )
        assert "reading" not in result.output  # the base


def test_a_hub_gives_no_address_where_it_does_not_listen(place, taken, tmp_path):
    registry = tmp_path / "registry.db"
    made = graft("hub", "init", "--registry", registry, "--user", "ann")
    assert made.exit_code == 0 and f"Made a new registry, {registry}" in made.output
    result = graft("hub", "serve", "--registry", registry, "--port", taken)
    refused(result, "Can't listen on", "choose another --port")
    assert "http://" not in result.output


def test_a_mistyped_registry_is_not_made(tmp_path):
    for words in (("hub", "serve"), ("task", "list"), ("search",)):
        refused(graft(*words, "--registry", tmp_path / "typo.db"), "There is no registry at")
    assert list(tmp_path.iterdir()) == []
