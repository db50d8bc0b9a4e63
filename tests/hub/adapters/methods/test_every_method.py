"""Every method and variant on every family: against the reference, against itself served, alone and mixed."""

from pathlib import Path

import pytest
import torch

from graft.hub.adapters.artifact import load_artifact, save_artifact
from graft.hub.adapters.methods import METHODS
from graft.hub.adapters.validation import inspect_artifact
from tests.conftest import FAMILIES
from tests.hub.adapters.methods.cases import (
    IDENTITY,
    LONG,
    NEARLY_IDENTITY,
    TEXTS,
    VARIANTS,
    base_of,
    case,
    eager_model,
    served_logits,
    trained_logits,
)
from tests.hub.adapters.methods.reference import plain_logits, reference_logits

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_family = pytest.mark.parametrize("family", FAMILIES)


def test_every_method_has_a_variant_here():
    assert {method for method, _ in VARIANTS.values()} == METHODS.keys()


@every_family
def test_the_bare_base_is_transformers_own(family):
    expected = plain_logits(eager_model(family), LONG)
    (logits,) = served_logits(base_of(family), [(None, LONG)])
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


@every_family
@every_variant
def test_trained_equals_the_reference(family, variant):
    c = case(family, variant)
    expected = reference_logits(eager_model(family), c.method.name, c.config, c.parameters, LONG)
    with torch.no_grad():
        logits = trained_logits(c.base, c.forms(c.parameters), LONG)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert (logits - plain_logits(eager_model(family), LONG)).abs().max() > 1e-2, "the adapter must matter"


@every_family
@pytest.mark.parametrize("variant", sorted(IDENTITY | NEARLY_IDENTITY))
def test_the_start_is_the_base(family, variant):
    c = case(family, variant)
    with torch.no_grad():
        logits = trained_logits(c.base, c.forms(c.fresh), LONG)
    distance = (logits - plain_logits(eager_model(family), LONG)).abs().max()
    assert distance < (1e-4 if variant in IDENTITY else 0.2)
    assert variant in IDENTITY or distance > 1e-6


@every_family
@every_variant
def test_what_is_served_is_what_was_trained(family, variant, tmp_path):
    c = case(family, variant)
    tensors = c.method.encode(c.config, c.parameters)
    save_artifact(tmp_path, c.method, c.config, tensors, c.base.spec, provenance={})
    loaded = load_artifact(tmp_path, c.base.spec)
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensors[name]) for name in tensors)
    assert loaded.method.identity(loaded.config) == c.method.identity(c.config)
    assert inspect_artifact(tmp_path, c.base.spec).digest == loaded.digest
    with torch.no_grad():
        trained = trained_logits(c.base, c.forms(c.parameters), LONG)
    (served,) = served_logits(c.base, [(loaded.fold(c.base), LONG)])
    torch.testing.assert_close(served, trained, atol=1e-5, rtol=1e-5)


@every_family
@every_variant
def test_gradient_reaches_every_parameter(family, variant):
    c = case(family, variant)
    parameters = {name: value.clone().requires_grad_() for name, value in c.parameters.items()}
    logits = trained_logits(c.base, c.forms(parameters), LONG)
    torch.nn.functional.cross_entropy(logits[:-1], LONG[1:]).backward()
    dead = [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead
    assert all(torch.isfinite(p.grad).all() for p in parameters.values())
    assert all(p.grad is None for p in c.base.model.parameters())


@every_family
def test_mixed_equals_alone(family):
    """All kinds, ranks and lengths in one packed batch, the bare base among them, in any order of arrival."""
    base = base_of(family)
    texts = [torch.tensor(text) for text in TEXTS]
    adapters = {v: case(family, v).forms(case(family, v).parameters) for v in VARIANTS}
    requests = [(forms, texts[i % 3]) for i, forms in enumerate(adapters.values())]
    requests += [(forms, texts[(i + 1) % 3]) for i, forms in enumerate(adapters.values()) if i % 4 == 0]
    for place in (0, 7, len(requests)):
        requests.insert(place, (None, texts[place % 3]))
    mixed = served_logits(base, requests)
    for (forms, ids), together in zip(requests, mixed, strict=True):
        (alone,) = served_logits(base, [(forms, ids)])
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@every_family
def test_bare_rows_are_the_base_bit_for_bit(family):
    base = base_of(family)
    texts = [torch.tensor(text) for text in TEXTS]
    requests = [(None, texts[0]), (None, texts[1])]
    requests += [(case(family, v).forms(case(family, v).parameters), texts[i % 3]) for i, v in enumerate(VARIANTS)]
    without = served_logits(base, requests, detours=False)
    mixed = served_logits(base, requests)
    for i in (0, 1):
        assert torch.equal(mixed[i], without[i])


def test_the_page_on_methods_names_each_with_its_learning_rate():
    page = (Path(__file__).parents[4] / "docs" / "methods.md").read_text()
    for name, method in METHODS.items():
        assert f"(`{name}`)" in page
        assert f"{method.learning_rate:.0e}".replace("e-0", "e-") in page, name


@pytest.mark.parametrize(
    "variant, library, tokens",
    [
        ("lora", "peft", 0),
        ("houlsby", "adapters", 0),
        ("series after one linear", "graft", 0),
        ("parallel", "graft", 0),  # reads the normed stream, which `adapters` does not
        ("bitfit", "graft", 0),
        ("prefix", "peft", 6),
        ("prefix beside the text", "adapters", 2),
    ],
)
def test_the_library_that_reads_it_and_the_positions_it_takes(variant, library, tokens):
    c = case("llama", variant)
    assert c.method.library(c.config) == library
    assert c.method.virtual_tokens(c.config) == tokens
