"""What is drawn, against the exact distribution; both samplers, torch's and the C++ kernels'."""

from dataclasses import replace
from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
import torch

from graft.server.runners.cpu import sampler as cpu_sampler
from graft.server.runners.cpu.build import load
from graft.server.sampling import torch_sampler
from graft.server.sampling.history import TokenHistory
from graft.server.sampling.params import Draw, Sampling, Score, uniform

VOCAB = 40
DRAWS = 20_000
OPTIONS = {
    "temperature": (1.0, 0.6, 1.7),
    "top_k": (0, 7),
    "top_p": (1.0, 0.9, 0.3),
    "min_p": (0.0, 0.08),
    "repetition_penalty": (1.0, 1.6),
    "presence_penalty": (0.0, 0.8),
    "frequency_penalty": (0.0, -0.4),
    "logit_bias": ((), ((3, 2.5), (4, -100.0), (39, 4.0))),
    "masked": (False, True),
}
PROMPT, OUTPUT = (1, 2, 3, 30), (5, 5, 7, 39)


@pytest.fixture(params=["torch", "cuda", "kernels"])
def sample(request):
    if request.param == "torch":
        return torch_sampler.sample
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("torch.cuda.is_available() is False: no CUDA GPU here")
        return lambda logits, draws, scores: torch_sampler.sample(logits.cuda(), draws, scores)
    kernels = load()
    if kernels is None:
        pytest.skip("no C++ compiler here")
    return partial(cpu_sampler.sample, kernels)


def pairwise():
    """Few combinations in which every two values of any two options occur together."""
    names = list(OPTIONS)
    open_pairs = {
        frozenset({(a, i), (b, j)})
        for a, b in combinations(names, 2)
        for i, j in product(range(len(OPTIONS[a])), range(len(OPTIONS[b])))
    }
    draw, chosen = np.random.default_rng(0), []
    while open_pairs:
        tries = [{name: int(draw.integers(len(OPTIONS[name]))) for name in names} for _ in range(60)]
        covered = [{frozenset(pair) for pair in combinations(one.items(), 2)} & open_pairs for one in tries]
        best = max(range(60), key=lambda i: len(covered[i]))
        open_pairs -= covered[best]
        chosen.append({name: OPTIONS[name][i] for name, i in tries[best].items()})
    return chosen


def exact(logits, sampling, masked):
    """The distribution by definition, token by token, in float64."""
    y = logits.double().numpy().copy()
    for id, bias in sampling.logit_bias:
        y[id] += bias
    for id in {*PROMPT, *OUTPUT}:
        y[id] = y[id] / sampling.repetition_penalty if y[id] > 0 else y[id] * sampling.repetition_penalty
    for id in set(OUTPUT):
        y[id] -= sampling.presence_penalty + sampling.frequency_penalty * OUTPUT.count(id)
    if masked:
        y[[i for i in range(VOCAB) if i % 3 == 0]] = -np.inf
    p = np.exp((y - y.max()) / sampling.temperature)
    order = sorted(range(VOCAB), key=lambda i: (-p[i], i))
    kept = [i for i in order if p[i] >= sampling.min_p * p.max()][: sampling.top_k or VOCAB]
    total, passed, nucleus = p[kept].sum(), 0.0, []
    for i in kept:
        if nucleus and passed >= sampling.top_p * total:
            break
        nucleus.append(i)
        passed += p[i]
    left = np.zeros(VOCAB)
    left[nucleus] = p[nucleus]
    return left / left.sum()


def chance_of(seen, hoped):
    """The p-value of Pearson's chi-squared test."""
    seen, hoped = np.asarray(seen, np.float64), np.asarray(hoped, np.float64)
    half = torch.tensor([len(seen) - 1, ((seen - hoped) ** 2 / hoped).sum()], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(half[0], half[1]))


def mask_of(allowed):
    bits = np.zeros(-(-VOCAB // 32) * 32, np.uint8)
    bits[[i for i in range(VOCAB) if allowed(i)]] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def test_every_pair_of_options_draws_from_the_exact_distribution(sample):
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    mask = mask_of(lambda i: i % 3)
    for number, options in enumerate(pairwise()):
        masked = options.pop("masked")
        sampling = Sampling(**options)
        history = TokenHistory(sampling, PROMPT)
        for id in OUTPUT:
            history.add(id)
        draws = [
            (0, Draw(sampling, seed=1000 * number + i % 100, position=i // 100, edits=history.edits,
                     allowed=mask if masked else None))
            for i in range(DRAWS)
        ]  # fmt: skip
        tokens = [
            token.id
            for part in range(0, DRAWS, 2000)
            for token in sample(logits[None], draws[part : part + 2000], []).tokens
        ]
        expected = exact(logits, sampling, masked)
        counts = np.bincount(tokens, minlength=VOCAB)
        assert not counts[expected == 0].any(), (options, masked)
        likely = expected * DRAWS >= 5
        seen = [*counts[likely], counts[~likely].sum()]
        hoped = [*expected[likely] * DRAWS, expected[~likely].sum() * DRAWS]
        if hoped[-1] == 0:
            seen, hoped = seen[:-1], hoped[:-1]
        if len(seen) > 1:
            assert chance_of(seen, hoped) > 1e-6, (options, masked)


def assert_same(ours, theirs):
    """The same tokens; log-probabilities up to the order in which a GPU adds, which depends on how many rows there are."""
    for one, other in zip(ours, theirs, strict=True):
        assert (one.id, [id for id, _ in one.top]) == (other.id, [id for id, _ in other.top])
        for a, b in zip(
            [one.logprob, *(p for _, p in one.top)], [other.logprob, *(p for _, p in other.top)], strict=True
        ):
            assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_yields_the_same_alone_and_among_others(sample, dtype):
    draw = np.random.default_rng(1)
    logits = (torch.randn(64, 5000, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    draws = []
    for row in range(64):
        sampling = Sampling(
            temperature=float(draw.choice([0.0, 0.7, 1.0, 2.0])), top_p=float(draw.choice([0.0, 0.5, 0.95, 1.0])),
            top_k=int(draw.choice([0, 1, 50])), min_p=float(draw.choice([0.0, 0.05])),
            logit_bias=((row, 3.0),) if row % 4 == 0 else (), logprobs=row % 6 or None,
        )  # fmt: skip
        draws.append((row, Draw(sampling, seed=row, position=row % 7, edits=TokenHistory(sampling, ()).edits)))
    scores = [(row, Score((row, 7), row % 5)) for row in range(64)]
    together = sample(logits, draws, scores)
    backwards = sample(logits, draws[::-1], [])
    assert_same(together.tokens, backwards.tokens[::-1])
    for i in range(64):
        alone = sample(logits[i : i + 1], [(0, draws[i][1])], [(0, scores[i][1])])
        assert_same([alone.tokens[0], *alone.scores[0]], [together.tokens[i], *together.scores[i]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_log_probabilities_are_the_models_own(sample, dtype):
    logits = (torch.randn(3, 5003, generator=torch.Generator().manual_seed(2)) * 4).to(dtype)
    exactly = logits.double().log_softmax(-1)
    sampling = Sampling(temperature=2.0, top_k=9, logprobs=6, logit_bias=((8, 50.0),))
    result = sample(
        logits,
        [(2, Draw(sampling, edits=TokenHistory(sampling, ()).edits))],
        [(0, Score((1, 1, 5002), 20)), (1, Score((3,)))],
    )
    (drawn,), (first, second) = result.tokens, result.scores
    assert drawn.id == 8 and len(drawn.top) == 6  # the bias moves the draw, not what is reported
    for row, tokens, ids, top in ((2, [drawn], [8], 6), (0, first, [1, 1, 5002], 20), (1, second, [3], 0)):
        assert [token.id for token in tokens] == ids
        for token in tokens:
            assert token.logprob == pytest.approx(float(exactly[row, token.id]), abs=1e-4)
            values = [value for _, value in token.top]
            assert values == pytest.approx(exactly[row].topk(top).values.tolist(), abs=1e-4)
            assert [float(exactly[row, id]) for id, _ in token.top] == pytest.approx(values, abs=1e-4)


def test_ties_go_to_the_lower_id(sample):
    logits = torch.zeros(1, VOCAB, dtype=torch.bfloat16)
    for sampling, kept in ((Sampling(top_k=3), 3), (Sampling(top_p=0.09), 4), (Sampling(top_p=0.0), 1)):
        draws = [(0, Draw(sampling, seed=i)) for i in range(400)]
        assert {token.id for token in sample(logits, draws, []).tokens} == set(range(kept)), sampling
    assert sample(logits, [(0, Draw(Sampling(temperature=0)))], []).tokens[0].id == 0
    logits[0, [31, 7]] = 1.0
    reported = sample(logits, [], [(0, Score((5,), 6))]).scores[0][0].top
    assert [id for id, _ in reported] == [7, 31, 0, 1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.5, logprobs=2)], ids=str)
def test_a_row_that_is_not_finite_yields_nothing_and_leaves_others_alone(sample, sampling, bad):
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    good = sample(logits, [(0, Draw(sampling)), (2, Draw(sampling))], [(2, Score((4,)))])
    logits[1, 777] = bad
    result = sample(logits, [(i, Draw(sampling)) for i in range(3)], [(1, Score((4,), 1)), (2, Score((4,)))])
    assert result.tokens[1] is None and result.scores[0] is None
    assert [result.tokens[0], result.tokens[2]] == good.tokens and result.scores[1] == good.scores[0]


def test_a_mask_that_allows_nothing_yields_nothing(sample):
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    for sampling in (Sampling(), Sampling(temperature=0)):
        assert sample(logits, [(0, Draw(sampling, allowed=mask_of(lambda i: False)))], []).tokens == [None]


def test_a_mask_and_bans_hold_for_greedy_rows_too(sample):
    logits = torch.arange(VOCAB, dtype=torch.float32)[None]
    greedy = Sampling(temperature=0)
    history = TokenHistory(greedy, (), banned=(39, 38))
    assert sample(logits, [(0, Draw(greedy, edits=history.edits))], []).tokens[0].id == 37
    history.unban()
    assert sample(logits, [(0, Draw(greedy, edits=history.edits))], []).tokens[0].id == 39
    masked = Draw(greedy, allowed=mask_of(lambda i: i < 33))
    assert sample(logits, [(0, masked)], []).tokens[0].id == 32


def test_every_seed_and_position_has_a_number_of_its_own(sample):
    """Neighbouring seeds and positions are unrelated, and 64 bits of a seed count, negative ones too."""
    numbers = np.array([[uniform(seed, position) for position in range(200)] for seed in range(-100, 100)])
    assert len(np.unique(numbers)) == numbers.size
    counts = np.histogram(numbers, bins=256, range=(0, 1))[0]
    assert chance_of(counts, np.full(256, numbers.size / 256)) > 1e-6
    for table in (numbers, numbers.T):
        assert abs(np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]) < 0.03
    logits = torch.zeros(1, 1000)
    drawn = [sample(logits, [(0, Draw(Sampling(), seed=seed))], []).tokens[0].id for seed in (-1, 2**63, 2**64 - 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_large_vocabularies_and_flat_rows_are_drawn_whole(sample):
    """Blocks, candidates and cuts at sizes where they matter: every filter against the definition on one flat row."""
    size = 131_072
    logits = (torch.randn(1, size, generator=torch.Generator().manual_seed(5)) * 0.5).to(torch.bfloat16)
    p = logits[0].double().softmax(-1)
    order = torch.sort(logits[0].float(), descending=True, stable=True).indices
    for sampling in (Sampling(top_p=0.5), Sampling(top_k=5000), Sampling(top_k=5000, top_p=0.9), Sampling(min_p=0.4)):
        kept = order[: sampling.top_k or size]
        kept = kept[p[kept] >= sampling.min_p * p.max()]
        share = p[kept].cumsum(0) / p[kept].sum()
        kept = set(kept[(share - p[kept] / p[kept].sum()) < sampling.top_p * (1 + 1e-5)].tolist())
        drawn = [token.id for token in sample(logits, [(0, Draw(sampling, seed=i)) for i in range(60)], []).tokens]
        assert set(drawn) <= kept and len(set(drawn)) > 50, sampling


def test_the_history_counts_what_is_drawn():
    rules = Sampling(repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((7, 1.0),))
    history = TokenHistory(rules, prompt=range(100), banned=(500,))
    for id in (7, 7, 200):
        history.add(id)
    edits = {int(edit["id"]): tuple(edit)[1:] for edit in history.edits}
    assert len(edits) == 102
    assert edits[7] == (1.0, 2.0, -1.0) and edits[200] == (0.0, 2.0, -0.75) and edits[99] == (0.0, 2.0, 0.0)
    assert edits[500] == (0.0, 1.0, -np.inf)
    assert TokenHistory(replace(rules, logit_bias=(), repetition_penalty=1.0), range(100)).edits is None
