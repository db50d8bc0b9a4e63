"""The probe: what an adapter says about a few token sequences, kept in its artifact and replayed when it is loaded.

Sequences are drawn from the vocabulary, so that no training text leaves the house with an artifact.
"""

import torch

from graft.hub.base import DTYPES, Base
from graft.hub.forms import Form
from graft.hub.probe import Probe, ProbeSequence
from graft.trainer.data import Pack, Sequence
from graft.trainer.passes import running, served

_LENGTHS = (6, 9, 12)  # tokens
_TOP = 5
_SEED = 1234


def make_probe(base: Base, forms: tuple[Form, ...]) -> Probe:
    """Top log-probabilities after the last token of each sequence, in the base's dtype, as the adapter is served."""
    generator = torch.Generator().manual_seed(_SEED)
    texts = [torch.randint(base.spec.vocab_size, (length,), generator=generator).tolist() for length in _LENGTHS]
    # a sequence's last id is what would be predicted: any id does, only its logits are looked at
    pack = Pack((tuple(Sequence((*tokens, 0), len(tokens)) for tokens in texts),))
    with torch.no_grad(), running(base, pack, [served(base, forms)]) as (logits, _):
        top = logits.float().log_softmax(dim=-1).topk(_TOP, dim=-1)
    (dtype,) = [name for name, kind in DTYPES.items() if kind == base.dtype]
    found = zip(texts, top.indices.tolist(), top.values.tolist(), strict=True)
    return Probe(dtype, tuple(ProbeSequence(tuple(ids), tuple(best), tuple(values)) for ids, best, values in found))
