"""Every runner's sums of hidden states against the rows that the output projection reads in a pass over one text alone."""

import numpy as np
import pytest
import torch

from graft.hub.adapters.batched_apply import RowOwners, Stack, Step
from graft.hub.adapters.packed_attention import PackedAttention, cache_rows
from graft.hub.adapters.serving_forms import CacheRows, InputRows, LowRank, detours
from graft.hub.base.hook_points import Tap
from graft.hub.base.model import Base
from graft.server.cache.step import Run, make_batch
from graft.server.sampling.params import GREEDY, Draw, Score
from tests.conftest import FAMILIES, tiny_tokenizer
from tests.server.runners.test_runners import KINDS, KINDS_OF_RUNNER, TOLERANCE, Sequences

# As often in one step as there is something of it to ask: (rows of its text that want logits, that want hidden states)
WANTS = {"mean": (0, 100), "last": (0, 1), "next": (1, 0), "both": (3, 5)}


def hidden_states(base, forms, tokens):
    """[T, H] of one text run whole, alone: what reaches the output projection."""
    stack = Stack([detours(forms)], base.dtype, base.device)

    def step(rows):
        return Step(stack, RowOwners(0, (rows,)), lm_head=base.spec.parts.lm_head)

    with torch.no_grad():
        prefix = next((form for form in forms if isinstance(form, CacheRows)), None)
        prompt = next((form for form in forms if isinstance(form, InputRows)), None)
        if prompt is not None:
            prefix = cache_rows(base, prompt.rows, step(len(prompt.rows)))
        start = prefix.text_start if prefix else 0
        positions = torch.arange(start, start + len(tokens))
        attention = PackedAttention([len(tokens)], [prefix], base.device)
        seen = []
        head = base.model.get_submodule(base.spec.parts.lm_head)
        hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]), prepend=True)
        base.forward(base.embed(torch.tensor(tokens)), positions, attention, step(len(tokens)))
        hook.remove()
    return seen[0]


@pytest.fixture(params=KINDS_OF_RUNNER)
def kind(request):
    yield request.param
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, family) for kind in ("eager", "fast-2") for family in FAMILIES),
        *(
            pytest.param("grouped", family, marks=() if family == "gemma2" else pytest.mark.slow)
            for family in ("gemma2", "gpt_neox", "llama")
        ),
    ],
    indirect=True,
)
def test_sums_of_all_kinds_in_one_step_beside_logits(kind, base, make_forms):
    """Two chunks of every text; who wants what is different for each, and scores and draws stay what they are without."""
    owners = {"base": ()} | {method: make_forms(method, base, i) for i, method in enumerate(KINDS)}
    generator = torch.Generator().manual_seed(7)
    texts = {name: torch.randint(2, 300, (7 + i,), generator=generator).tolist() for i, name in enumerate(owners)}
    sequences = Sequences(kind, base, blocks=128)
    for name, forms in owners.items():
        sequences.add(name, forms, len(texts[name]))
    sequences.virtual()
    wants = {name: [*WANTS.values()][i % len(WANTS)] for i, name in enumerate(owners)}
    expected = {name: hidden_states(base, forms, texts[name]) for name, forms in owners.items()}
    for first, stop in ((0, 5), (5, None)):
        runs = []
        for name, text in texts.items():
            piece, (logits, hidden) = text[first:stop], wants[name]
            place = sequences.start[name] + first, sequences.text_start[name] + first
            counts = min(logits, len(piece)), min(hidden, len(piece))
            runs.append(
                (sequences.digest[name], Run(0, piece, *place, sequences.blocks[name], counts[0], None, counts[1]))
            )
        batch, order = make_batch(runs)
        rows = sum(batch.logit_lengths)
        result = sequences.runner.step(batch, [(rows - 1, Draw(GREEDY))], [(0, Score((5,)))])
        assert result.tokens[0] is not None and result.scores[0] is not None
        sums = iter(result.hidden)
        for i, run in zip(order, batch.runs, strict=True):
            if run.hidden:
                name, end = [*owners][i], first + run.length
                want = expected[name][end - run.hidden : end].double().sum(0)
                torch.testing.assert_close(torch.from_numpy(next(sums)), want, atol=1e-3, rtol=1e-4)
        assert not [*sums]


def test_rows_of_hidden_states_cost_the_others_no_bit(kind, llama, make_forms):
    """The same rows in the same places, asked for hidden states beside: the same logits."""
    sequences = Sequences(kind, llama)
    for name, forms in (("base", ()), ("lora", make_forms("lora", llama))):
        sequences.add(name, forms, 40)
    text = list(range(2, 40))

    def logits(hidden):
        runs = [
            (sequences.digest[name], Run(0, text, 0, 0, sequences.blocks[name], 9, None, hidden))
            for name in ("base", "lora")
        ]
        return sequences.runner.run(make_batch(runs)[0])

    assert torch.equal(logits(0), logits(38))


@pytest.mark.parametrize("kind", ["eager", "fast-1", "grouped"], indirect=True)
def test_what_an_adapter_changes_behind_the_last_norm(kind, llama):
    """Detours on the norm's output are part of the states; those on the projection's own input and output are not."""

    def low_rank(tap, out):
        return LowRank((Tap("model.norm", "out"),), tap, torch.full((1, 32), 0.1), torch.full((1, out), 0.5))

    norm, made = Tap("model.norm", "out"), Tap("lm_head", "out")
    text = list(range(2, 12))
    sums = {}
    for name, forms in (("base", ()), ("norm", (low_rank(norm, 32),)), ("head", (low_rank(made, 300),))):
        if kind != "grouped" or name != "head":  # what it reads has other rows than where it adds
            sequences = Sequences(kind, llama)
            sequences.add(name, forms, 10)
            run = Run(0, text, 0, 0, sequences.blocks[name], 10, None, 10)
            batch, _ = make_batch([(sequences.digest[name], run)])
            sums[name] = sequences.runner.step(batch, [], []).hidden[0]
    states = hidden_states(llama, (), text).double()
    shifted = states + 0.05 * states.sum(1, keepdim=True)
    for name, want in (("base", states), ("norm", shifted), ("head", states)):
        if name in sums:
            torch.testing.assert_close(torch.from_numpy(sums[name]), want.sum(0), **TOLERANCE)


@pytest.mark.parametrize("kind", ["eager", "fast-1", "grouped"], indirect=True)
def test_an_overflow_costs_its_own_sum(kind, llama, make_forms):
    sequences = Sequences(kind, llama)
    broken = [LowRank((Tap("model.layers.0.mlp.down_proj", "in"),), Tap("model.layers.0.mlp.down_proj", "out"),
                      torch.full((1, 48), 1e30), torch.full((1, 32), 1e30))]  # fmt: skip
    for name, forms in (("base", ()), ("broken", broken), ("lora", make_forms("lora", llama))):
        sequences.add(name, forms, 10)
    text = list(range(2, 12))
    batch, order = make_batch(
        [(sequences.digest[name], Run(0, text, 0, 0, sequences.blocks[name], 0, None, 10)) for name in sequences.blocks]
    )
    by_name = dict(
        zip([[*sequences.blocks][i] for i in order], sequences.runner.step(batch, [], []).hidden, strict=True)
    )
    assert by_name.pop("broken") is None
    assert all(np.isfinite(one).all() for one in by_name.values())


def test_a_family_whose_projection_reads_a_narrower_stream():
    """OPT-350m: no final norm, and a linear in its place."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = dict(FAMILIES["opt"], word_embed_proj_dim=16, do_layer_norm_before=False)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    base = Base(model.eval(), tiny_tokenizer())
    sequences = Sequences("eager", base)
    sequences.add("base", (), 10)
    text = list(range(2, 12))
    batch, _ = make_batch([(None, Run(0, text, 0, 0, sequences.blocks["base"], 0, None, 10))])
    (total,) = sequences.runner.step(batch, [], []).hidden
    assert total.shape == (16,)
    torch.testing.assert_close(torch.from_numpy(total), hidden_states(base, (), text).double().sum(0), **TOLERANCE)
