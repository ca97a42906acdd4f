"""The closed form of TIME and UCE: against the dense formula in double precision, and in its limits."""

import pytest
import torch

from guidekit.samplers.lora.concept_edit import Wishes, edit

OUT, CHANNELS = 24, 40


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wishes(edited, kept, seed=0, weights=None):
    given, other = normal(edited + kept, CHANNELS, seed=seed), normal(edited, CHANNELS, seed=seed + 50)
    wanted = torch.cat([other, given[edited:]])
    weights = torch.linspace(0.5, 1.5, edited + kept, dtype=torch.float64) if weights is None else weights
    return Wishes(given, wanted, weights)


def dense(weight, w, ridge):
    """(lambda W + V A C^T) (lambda I + C A C^T)^-1, with texts as columns."""
    c, a = w.given.T, torch.diag(w.weights)
    v = weight @ w.wanted.T
    return (ridge * weight + v @ a @ c.T) @ torch.linalg.inv(ridge * torch.eye(CHANNELS).double() + c @ a @ c.T)


def changed(weight, found):
    return weight + found.up(weight) @ found.down


@pytest.mark.parametrize(("edited", "kept"), [(1, 0), (1, 4), (5, 30), (60, 10), (3, 200)])
def test_against_the_dense_formula(edited, kept):
    weight, w = normal(OUT, CHANNELS, seed=9), wishes(edited, kept)
    found = edit(w, 0.5)
    assert found.rank == min(edited, CHANNELS)
    torch.testing.assert_close(changed(weight, found), dense(weight, w, 0.5), rtol=0, atol=1e-10)
    assert torch.linalg.matrix_rank(changed(weight, found) - weight, rtol=1e-9) == min(edited, OUT)


def test_it_is_the_minimum():
    weight, w, ridge = normal(OUT, CHANNELS, seed=9), wishes(2, 3), 0.3

    def loss(m):
        missed = ((m @ w.given.T - weight @ w.wanted.T).square().sum(0) * w.weights).sum()
        return missed + ridge * (m - weight).square().sum()

    m = changed(weight, edit(w, ridge)).requires_grad_()
    assert torch.autograd.grad(loss(m), m)[0].abs().max() < 1e-10


def test_an_edit_acts_on_the_text_for_any_weight():
    """W' c = W (c + M c), whatever W is."""
    found, text = edit(wishes(2, 3), 0.5), normal(7, CHANNELS, seed=3)
    moved = text + text @ found.down.T @ found.shift.T
    for seed in (9, 10):
        weight = normal(OUT, CHANNELS, seed=seed)
        torch.testing.assert_close(text @ changed(weight, found).T, moved @ weight.T, rtol=0, atol=1e-11)


def test_order_does_not_matter():
    weight, w = normal(OUT, CHANNELS, seed=9), wishes(4, 6)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(2))
    other = Wishes(w.given[order], w.wanted[order], w.weights[order])
    one, two = (changed(weight, edit(each, 0.5)) for each in (w, other))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_a_text_with_a_huge_weight_reaches_its_target():
    weight, w = normal(OUT, CHANNELS, seed=9), wishes(1, 0, weights=torch.tensor([1e12]))
    found = changed(weight, edit(w, 0.5))
    torch.testing.assert_close(found @ w.given[0], weight @ w.wanted[0], rtol=0, atol=1e-9)


def test_a_large_lambda_changes_nothing():
    weight, w = normal(OUT, CHANNELS, seed=9), wishes(3, 3)
    torch.testing.assert_close(changed(weight, edit(w, 1e15)), weight, rtol=0, atol=1e-10)


def test_kept_texts_with_a_huge_weight_stay():
    w, weight = wishes(2, 5), normal(OUT, CHANNELS, seed=9)
    moved = []
    for keep in (1.0, 1e3, 1e9):
        weights = torch.cat([torch.ones(2), torch.full((5,), keep)]).double()
        found = changed(weight, edit(Wishes(w.given, w.wanted, weights), 0.5))
        moved.append(((found - weight) @ w.given[2:].T).abs().max().item())
    assert moved[0] > 100 * moved[1] > 1e5 * moved[2]
    without = edit(Wishes(w.given[:2], w.wanted[:2], torch.ones(2).double()), 0.5)
    assert ((changed(weight, without) - weight) @ w.given[2:].T).abs().max() > 5 * moved[0]


def test_equal_texts_are_merged():
    """With the sum of their weights, and the mean of what is wanted: the minimum is the same."""
    weight, w = normal(OUT, CHANNELS, seed=9), wishes(2, 2)
    twice = Wishes(
        w.given[[0, 0, 1, 2, 3, 3]], w.wanted[[0, 1, 1, 2, 3, 3]], torch.tensor([1.0, 3, 1, 1, 1, 1]).double()
    )
    torch.testing.assert_close(changed(weight, edit(twice, 0.5)), dense(weight, twice, 0.5), rtol=0, atol=1e-10)
    assert edit(twice, 0.5).rank == 2


def test_kept_texts_do_not_add_to_the_rank():
    w = wishes(0, 6)
    found = edit(w, 0.5)
    assert found.rank == 0
    again = Wishes(w.given[[0, 0, 0, 1]], w.given[[0, 0, 0, 1]], torch.tensor([0.1, 0.2, 0.7, 1.0]).double())
    assert edit(again, 0.5).rank == 0


def test_nearly_equal_texts_are_well_conditioned():
    """As those behind the end of a sentence are."""
    w = wishes(1, 0)
    close = w.given + 1e-7 * normal(30, CHANNELS, seed=5)
    found = edit(Wishes(close, w.wanted.expand(30, -1), torch.ones(30)), 0.1)
    weight = normal(OUT, CHANNELS, seed=9)
    assert (changed(weight, found) @ w.given[0] - weight @ w.wanted[0]).abs().max() < 0.01


def test_more_texts_than_channels():
    """With next to no lambda they are fitted as well as they can be, which is a question of channels, and not of an
    inverse of as many texts, most of which say the same."""
    weight, w = normal(OUT, CHANNELS, seed=9), wishes(20, 380)
    root = w.weights.sqrt()[:, None]
    fitted = torch.linalg.lstsq(root * w.given, root * (w.wanted @ weight.T)).solution.T
    torch.testing.assert_close(changed(weight, edit(w, 1e-14)), fitted, rtol=0, atol=1e-9)


def test_a_great_many_texts_need_no_square_of_their_number():
    given = normal(200_000, 4)
    wanted = given.clone()
    wanted[0] += 1
    found = edit(Wishes(given, wanted, torch.ones(len(given))), 0.5)
    assert found.rank == 1
