"""K5: the frozen matrix that PEFT saves beside a LoRA on the output projection, in whatever dtype it was trained.

Reports: https://github.com/vllm-project/vllm/issues/32599, https://github.com/huggingface/peft/issues/2898. What is right:
it is the base's if one rounding to each side's dtype explains every difference; else the adapter is refused.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from graft.hub.adapters.artifact import load_artifact, save_artifact
from graft.hub.adapters.methods import get_method
from graft.hub.base.model import Base
from graft.hub.errors import BaseMismatchError
from tests.conftest import tiny_model, tiny_tokenizer

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAME = "base_model.model.lm_head.base_layer.weight"


def fine_model(stored: torch.dtype):
    """Embeddings as training leaves them: some values far below float16's normal range."""
    model = tiny_model("llama")
    with torch.no_grad():
        weight = model.lm_head.weight
        weight.mul_(torch.logspace(-8, 0, weight.shape[1]))
    return model.to(stored).float()


def adapter(folder: Path, base: Base, frozen: torch.Tensor, name: str = NAME) -> Path:
    method = get_method("lora")
    config = method.from_options({"r": "2", "targets": "q_proj,lm_head"}, base.spec)
    tensors = {key: torch.randn(shape) for key, shape in method.shapes(config, base.spec).items()}
    save_artifact(folder, method, config, tensors, base.spec)
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {name: frozen.contiguous()}, path)
    return folder


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", DTYPES)
@pytest.mark.parametrize("served", DTYPES)
def test_a_frozen_matrix_in_any_dtype_is_the_bases(tmp_path: Path, stored, trained, served) -> None:
    model = fine_model(stored)
    original = model.lm_head.weight.detach().clone()
    base = Base(model.to(served), tiny_tokenizer())
    assert load_artifact(adapter(tmp_path / "a", base, original.to(trained)), base.spec).fold(base)
    other = original.clone()
    other[77] = original[78]  # two rows of a vocabulary that was made anew
    with pytest.raises(BaseMismatchError, match="its own weight of lm_head"):
        load_artifact(adapter(tmp_path / "b", base, other.to(trained)), base.spec).fold(base)
    trained_on = original * (1 + 0.02 * torch.randn_like(original))
    with pytest.raises(BaseMismatchError, match="its own weight of lm_head"):
        load_artifact(adapter(tmp_path / "c", base, trained_on.to(trained)), base.spec).fold(base)


@pytest.mark.parametrize("name", ["lm_head.base_layer.weight", "module.base_model.model.lm_head.weight"])
def test_under_other_names_too(tmp_path: Path, name: str) -> None:
    base = Base(fine_model(torch.bfloat16), tiny_tokenizer())
    weight = base.weight("lm_head").detach()
    assert load_artifact(adapter(tmp_path / "a", base, weight.half(), name), base.spec).fold(base)
    with pytest.raises(BaseMismatchError, match="lm_head"):
        load_artifact(adapter(tmp_path / "b", base, weight.half() + 1, name), base.spec).fold(base)
