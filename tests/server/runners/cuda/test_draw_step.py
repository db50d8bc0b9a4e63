"""Static draws: bit for bit the draws of exactly as many rows, of this step's rules alone, and without a wait for the device."""

from itertools import cycle, islice

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from graft.server.runners.cuda.draw_step import Drawer
from graft.server.runners.cuda.graphs import GraphError, call_directly
from graft.server.runners.cuda.static_sizes import padded
from graft.server.sampling.history import TokenHistory
from graft.server.sampling.params import GREEDY, Draw, Sampling, Score
from graft.server.sampling.torch_sampler import TorchSampler, Way, draw_tokens, plain_draws
from tests.server.sampling.test_draws import mask_of, pairwise

VOCAB = 1003
COUNTS = (1, 2, 3, 5, 11, 23)  # of rows, padded up to 1, 2, 4, 8, 16, 24
CPU = torch.device("cpu")
PLAIN = ("temperature", "top_k", "top_p", "min_p")


class PoisonedRecord:
    """Records as a graph would, and makes everything a replay has read, and what it has not been given, useless for the next one."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, function):
        self.recorded += 1

        def replay():
            result = function()
            static = function.__self__
            static._logits.fill_(float("nan"))
            static._columns.fill_(float("nan"))
            return result

        return replay


def every_plain_sampling():
    """Of every pair of options, and greedy ones."""
    options = [{name: row[name] for name in PLAIN} for row in pairwise()]
    return [Sampling(**row) for row in options] + [GREEDY, Sampling(top_k=1), Sampling(top_p=0.0)]


def random_logits(rows, seed=0, dtype=torch.float32):
    return (torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def drawn(draws, logits, drawer):
    """What a padded, static draw gives; rows that nothing is drawn from hold what may lie there."""
    padding = torch.full((padded(len(logits)) - len(logits), VOCAB), float("nan"), dtype=logits.dtype)
    outputs = drawer.run(torch.cat([logits, padding]), plain_draws(draws))
    return outputs.drawn


def exactly(draws, logits):
    sampler = TorchSampler(draws, [], CPU)
    result = sampler.begin(logits)
    return sampler.drawn, torch.tensor([token is not None for token in result().tokens])


def assert_same(draws, logits, drawer):
    for got, expected in zip(drawn(draws, logits, drawer), exactly(draws, logits), strict=True):
        assert torch.equal(got, expected.long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padded_draws_are_those_of_as_many_rows_bit_for_bit_for_every_pair_of_options(dtype):
    """Alone, each way of drawing, and mixed with others in one step; the memory that they share is poisoned in between."""
    record = PoisonedRecord()
    drawer = Drawer(record)
    samplings = every_plain_sampling()
    for turn, (first, count) in enumerate(zip(range(len(samplings)), cycle(COUNTS), strict=False)):
        logits = random_logits(count, turn, dtype)
        for chosen in ([samplings[first]] * count, [*islice(cycle(samplings[first:]), count)]):
            draws = [(i, Draw(sampling, seed=turn, position=i)) for i, sampling in enumerate(chosen)]
            assert_same(draws, logits, drawer)
    assert record.recorded <= len(COUNTS) * len(Way)


def test_no_number_of_an_earlier_step_is_read():
    """Fewer rows after more, colder after hotter, greedy after drawn: as a step that comes first."""
    drawer = Drawer(PoisonedRecord())
    for count in (16, 9, 16, 10):
        for number, sampling in enumerate((Sampling(temperature=5.0), Sampling(temperature=0.1), GREEDY)):
            chosen = [sampling] * (count - 1) + [Sampling()]  # one that is drawn: the same recording for all
            draws = [(i, Draw(one, seed=i, position=number)) for i, one in enumerate(chosen)]
            assert_same(draws, random_logits(count, 7), drawer)


def test_a_row_that_is_not_finite_is_told():
    logits = random_logits(3)
    logits[1, 5] = float("nan")
    ids, finite = drawn([(i, Draw(Sampling(), seed=i)) for i in range(3)], logits, Drawer(call_directly))
    assert finite.tolist() == [1, 0, 1]
    assert ids[[0, 2]].tolist() == [
        exactly([(0, Draw(Sampling(), seed=i))], logits[i : i + 1])[0].item() for i in (0, 2)
    ]


def test_what_is_reported_of_drawn_rows_is_what_the_sampler_reports():
    """Log-probabilities and scores beside draws that were made elsewhere."""
    logits = random_logits(5)
    draws = [(i, Draw(Sampling(logprobs=i), seed=i)) for i in range(5)]
    scores = [(2, Score((4, 9), 3))]
    outputs = Drawer(call_directly).run(torch.cat([logits, logits[:3]]), plain_draws(draws))
    got = TorchSampler(draws, scores, CPU).begin(outputs.logits, outputs.drawn)()
    assert got == TorchSampler(draws, scores, CPU)(logits)


def test_edits_masks_and_other_rows_are_not_plain():
    edits = TokenHistory(Sampling(logit_bias=((3, 1.0),)), ()).edits
    assert plain_draws([(0, Draw(GREEDY, edits=edits))]) is None
    assert plain_draws([(0, Draw(GREEDY)), (1, Draw(GREEDY, allowed=mask_of(lambda i: True)))]) is None
    assert plain_draws([(1, Draw(GREEDY))]) is None
    assert plain_draws([(1, Draw(GREEDY)), (0, Draw(GREEDY))]) is None
    assert plain_draws([]) is None


def test_draws_that_cannot_be_recorded_are_drawn_otherwise():
    def refuse(function):
        raise GraphError("Not today.")

    def wrong(function):
        return lambda: function() + 1

    draws = [(0, Draw(Sampling(), seed=1))]
    for record in (refuse, wrong):
        assert Drawer(record).run(random_logits(1), plain_draws(draws)) is None


class OnDeviceOnly(TorchDispatchMode):
    """Refuses whatever has a tensor of another device, or gives numbers to Python, which waits for the device."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen.add(function.overloadpacket.__name__)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        # a number that fills a tensor is given to the launch: it is a tensor of the CPU on the way, and nobody waits for it
        others = [tensor for tensor in tensors if tensor.device.type != "meta" and tensor.dim()]
        assert not others, function
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "unique"), (
            function
        )
        return result


@pytest.mark.parametrize("way", Way)
def test_drawing_never_waits_for_the_device(way):
    """On a device without numbers: reading one, or a shape that depends on one, would fail."""
    logits = torch.empty(4, VOCAB, device="meta", dtype=torch.bfloat16)
    columns = torch.empty(6, 4, device="meta", dtype=torch.float64)
    with OnDeviceOnly() as mode:
        ids, finite = draw_tokens(logits, columns, way)
    assert ids.shape == finite.shape == (4,) and "argmax" in mode.seen
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), OnDeviceOnly():
        ids[0].item()
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), OnDeviceOnly():
        logits[finite]
