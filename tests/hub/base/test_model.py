"""A base that can't be loaded is refused in words."""

import pytest

from graft.hub.base.model import load_base
from graft.hub.errors import BaseModelError
from tests.conftest import tiny_base


def test_weights_that_are_cut_short_are_told(tmp_path):
    """The reader's error is none of Python's own, and nobody turned it into words."""
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(BaseModelError, match=r"Can't load the base .*: Error while deserializing header"):
        load_base(tmp_path, device="cpu")
