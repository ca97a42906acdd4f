"""Confusion guidance: who is the reference, and how strong."""

import itertools

import pytest
import torch

from guidekit.samplers.guidance.gfcg import MEASURES, confusion, guidance_update, most_confusing, probabilities
from guidekit.tests.maths.problems import latents


def random_p(rows=200, n=5, seed=0):
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(1)


def test_probabilities():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    for temperature in (0.5, 1.0, 4.0):
        e = (logits.double() / temperature).exp()
        assert torch.allclose(probabilities(logits, temperature).double(), e / e.sum(1, keepdim=True), atol=1e-6)
    cold, warm = (probabilities(logits, t).amax(1) for t in (0.1, 10.0))
    assert (cold > warm).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_cannot_be_seen_is_left_alone(value):
    """Each sample by itself."""
    logits = torch.tensor([[0.0, value, 1.0], [0.0, 2.0, 1.0]])
    p = probabilities(logits)
    assert p[0].tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(p[1:], probabilities(logits[1:]))


def test_out_of_the_question():
    p = probabilities(torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf] * 3, [torch.nan, -torch.inf, 0.0]]))
    assert p.tolist() == [[0.5, 0.0, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_large_logits():
    p = probabilities(torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]))
    assert p.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_the_reference_is_never_the_target():
    p = random_p()
    k = most_confusing(p)
    assert (k >= 1).all()
    assert all(p[i, k[i]] == max(p[i, 1:]) for i in range(len(p)))
    sure = torch.tensor([[1.0, 0.0, 0.0]])
    assert most_confusing(sure).item() == 1


def test_the_reference_where_probabilities_underflow():
    """CLIP's logits are 100 cosines: at a low temperature every wrong candidate has probability 0 in float32."""
    logits = torch.tensor([[30.0, 10.0, 15.0, 20.0]])
    assert probabilities(logits, 0.05)[0, 1:].tolist() == [0.0, 0.0, 0.0]
    assert most_confusing(logits).item() == 3


def test_an_image_of_nan_has_the_first_candidate():
    assert most_confusing(torch.tensor([[torch.nan] * 4, [0.0, torch.nan, 1.0, 2.0]])).tolist() == [1, 3]


def test_among_equals_the_first():
    assert most_confusing(torch.tensor([[0.1, 0.2, 0.3, 0.3], [0.4, 0.2, 0.2, 0.2]])).tolist() == [2, 1]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_order_of_candidates_does_not_matter(measure):
    p = random_p(20, 4)
    k = most_confusing(p)
    for order in itertools.permutations((1, 2, 3)):
        moved = p[:, [0, *order]]
        found = most_confusing(moved)
        assert torch.equal(torch.tensor([0, *order])[found], k)
        assert torch.equal(confusion(moved, found, measure), confusion(p, k, measure))


@pytest.mark.parametrize("measure", [m for m in MEASURES if m != "const"])
def test_less_confused_where_the_target_is_likelier(measure):
    """With the others in fixed proportions; 0 where it is certain, and 1 where it is out of the question (max: what
    the likeliest has)."""
    others = torch.tensor([0.6, 0.3, 0.1])
    p0 = torch.linspace(0, 1, 101)
    p = torch.cat([p0[:, None], (1 - p0)[:, None] * others], 1)
    found = confusion(p, most_confusing(p), measure)
    assert (found.diff() <= 1e-6).all()
    assert found[-1] == 0
    assert found[0].item() == pytest.approx(0.6 if measure == "max" else 1.0)
    assert 0 < found[50] < 1


def test_the_measures_by_hand():
    p = torch.tensor([[0.5, 0.125, 0.375]])
    k = most_confusing(p)
    values = {measure: confusion(p, k, measure).item() for measure in MEASURES}
    assert values == pytest.approx({"miss": 0.5, "margin": 0.375 / 0.875, "max": 0.375, "const": 1.0})


def test_with_two_candidates_the_margin_is_the_other_s_probability():
    p = random_p(50, 2)
    assert torch.allclose(confusion(p, most_confusing(p), "margin"), p[:, 1])


def test_another_reference_may_be_asked_about():
    """The last step's, where the reference is a step late."""
    p = torch.tensor([[0.2, 0.7, 0.1]])
    assert confusion(p, torch.tensor([2]), "max").item() == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(3, 4, 10), (3, 4, 6, 5), (3, 4, 3, 5, 2)])
def test_the_push_is_each_sample_s_own(shape):
    cond, reference, strength = latents(shape, 1), latents(shape, 2), torch.tensor([0.0, 0.5, 2.0])
    found = guidance_update(cond, reference, strength)
    for i, s in enumerate(strength.tolist()):
        assert torch.allclose(found[i], s * (cond[i] - reference[i]))
    assert found.dtype == cond.dtype
