"""HF PEFT as the oracle of embeddings: what it has behind its last layer, pooled, is what the engine gives."""

import numpy as np
import pytest
import torch

from graft.server.engine.engine import Engine
from graft.server.engine.request import Pooling, Request
from tests.hub.adapters.methods.cases import TEXTS, base_of
from tests.interop.test_peft import FAMILIES, IDS, made_by_peft, offline, peft_base  # noqa: F401

KINDS = ("lora", "dora", "bias=all", "output projection", "ia3", "prompt", "ptuning mlp", "prefix")


def states(model, ids):
    """[T, H] of the text, its virtual tokens left out."""
    with torch.no_grad():
        made = model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], output_hidden_states=True)
    return made.hidden_states[-1][0, -len(ids) :].double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_in_one_batch_is_pooled_as_peft_has_it(family, tmp_path):
    models = {kind: made_by_peft(family, kind, tmp_path / kind) for kind in KINDS}
    models[None] = peft_base(family)
    asked = [
        Request(TEXTS[i], kind, max_tokens=0, pooling=pooling)
        for kind in models
        for i in range(len(TEXTS))
        for pooling in Pooling
    ]
    with Engine(base_of(family), {kind: tmp_path / kind for kind in KINDS}) as engine:
        results = engine.generate(asked)
    for request, result in zip(asked, results, strict=True):
        rows = states(models[request.model], IDS[TEXTS.index(request.prompt)])
        want = rows.mean(0) if request.pooling is Pooling.MEAN else rows[-1]
        np.testing.assert_allclose(result.embedding, want, atol=1e-4, rtol=1e-4, err_msg=str(request.model))
