"""Shared attention: the properties that it has whatever the tokens are, against dense attention in double precision."""

import pytest
import torch

from guidekit.samplers.attention.style_aligned import adain, fused, share_bias

DIM = 5


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(q, k, v, bias=0.0):
    return (q @ k.transpose(-1, -2) * DIM**-0.5 + bias).softmax(-1) @ v


def shared(q, k, v, theirs, share=0.0, visible=None, following=None):
    """With a reference's keys and values behind the own ones."""
    their_k, their_v = theirs
    following = torch.ones(len(q), dtype=torch.bool) if following is None else following
    bias = share_bias(k.shape[2], their_k, share, visible, following)
    return attention(q, torch.cat([k, their_k], 2), torch.cat([v, their_v], 2), bias)


@pytest.mark.parametrize("rank", [(2, 3, 16), (1, 1, 40)])
def test_aligned_tokens_have_the_statistics_of_the_reference(rank):
    tokens, reference = normal(*rank, DIM), 3 * normal(*rank[:2], 9, DIM, seed=1) + 1
    found = adain(tokens, reference)
    torch.testing.assert_close(found.mean(2), reference.mean(2), rtol=0, atol=1e-12)
    # But for the 1e-5 that is added to variances.
    torch.testing.assert_close(found.std(2), reference.std(2), rtol=1e-4, atol=0)


def test_alignment_by_hand():
    tokens, reference = torch.tensor([[[[0.0], [2.0]]]]), torch.tensor([[[[10.0], [16.0]]]])
    deviation, wanted = (2 + 1e-5) ** 0.5, (18 + 1e-5) ** 0.5
    wanted = torch.tensor([[[[13 - wanted / deviation], [13 + wanted / deviation]]]])
    torch.testing.assert_close(adain(tokens, reference), wanted)


def test_tokens_that_are_all_alike():
    """Become the reference's mean, and no NaN."""
    tokens, reference = torch.full((1, 2, 6, DIM), 3.0), normal(1, 2, 6, DIM).float()
    wanted = reference.mean(2, keepdim=True).expand_as(tokens)
    torch.testing.assert_close(adain(tokens, reference), wanted, rtol=0, atol=1e-5)


def test_a_single_token_becomes_the_mean_of_the_reference():
    """It has no spread to be scaled; of a single one the mean is itself."""
    one, other, many = normal(2, 3, 1, 4, seed=1), normal(2, 3, 1, 4, seed=2), normal(2, 3, 9, 4, seed=3)
    torch.testing.assert_close(adain(one, other), other)
    torch.testing.assert_close(adain(one, many), many.mean(2, keepdim=True))
    assert torch.isfinite(adain(many, one)).all()


def test_the_reference_itself_stays():
    reference = 2 * normal(2, 3, 16, DIM) - 1
    torch.testing.assert_close(adain(reference, reference), reference, rtol=0, atol=1e-12)


def test_rows_heads_and_channels_are_aligned_by_themselves():
    tokens, reference = normal(2, 3, 16, DIM), normal(2, 3, 16, DIM, seed=1)
    whole = adain(tokens, reference)
    other = tokens.clone()
    other[1, 2, :, 4] = 7 * other[1, 2, :, 4] ** 2
    changed = adain(other, reference)
    assert not torch.equal(changed[1, 2, :, 4], whole[1, 2, :, 4])
    changed[1, 2, :, 4] = whole[1, 2, :, 4]
    assert torch.equal(changed, whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_is_kept_and_half_precision_is_enough(dtype):
    tokens, reference = (30 * normal(1, 2, 64, DIM, seed=s) + 100 for s in (0, 1))
    found = adain(tokens.to(dtype), reference.to(dtype))
    assert found.dtype == dtype
    wanted = adain(tokens.to(dtype).double(), reference.to(dtype).double())
    torch.testing.assert_close(found.double(), wanted, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


def test_a_row_that_is_its_own_reference_stays():
    q, k, v = (normal(2, 3, 16, DIM, seed=s) for s in range(3))
    torch.testing.assert_close(shared(q, k, v, (k, v)), attention(q, k, v), rtol=0, atol=1e-12)
    torch.testing.assert_close(shared(q, k, v, (k, v), share=2.0), attention(q, k, v), rtol=0, atol=1e-12)


def test_a_reference_of_equal_values_that_queries_do_not_tell_apart():
    """Q K^T = 0 on both sides: half of what the image has, half of the constant."""
    q, k, v = torch.zeros(1, 1, 8, DIM, dtype=torch.float64), normal(1, 1, 8, DIM), normal(1, 1, 8, DIM, seed=1)
    constant = torch.full_like(v, 3.0)
    wanted = (v.mean(2, keepdim=True) + 3) / 2
    torch.testing.assert_close(shared(q, k, v, (k, constant)), wanted.expand_as(v))
    weight = 4.0
    wanted = (v.mean(2, keepdim=True) + 3 * weight) / (1 + weight)
    share = torch.tensor(weight).double().log().item()
    torch.testing.assert_close(shared(q, k, v, (k, constant), share), wanted.expand_as(v))


def test_a_share_of_minus_infinity_ignores_the_reference():
    q, k, v, their_k, their_v = (normal(1, 2, 8, DIM, seed=s) for s in range(5))
    torch.testing.assert_close(shared(q, k, v, (their_k, their_v), -1e3), attention(q, k, v), rtol=0, atol=1e-12)


def test_only_what_is_visible_is_seen():
    q, k, v, their_k, their_v = (normal(2, 2, 8, DIM, seed=s) for s in range(5))
    visible = torch.tensor([True, False] * 4)
    found = shared(q, k, v, (their_k, their_v), 0.7, visible)
    alone = shared(q, k, v, (their_k[:, :, ::2], their_v[:, :, ::2]), 0.7)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-12)
    following = torch.tensor([True, False])
    found = shared(q, k, v, (their_k, their_v), 0.7, visible, following)
    torch.testing.assert_close(found[:1], alone[:1], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1:], attention(q, k, v)[1:], rtol=0, atol=1e-12)


def test_one_reference_counts_whole():
    plain, changed = normal(2, 3, 8, DIM), normal(2, 3, 8, DIM, seed=1)
    torch.testing.assert_close(fused(plain, [changed]), changed)
    torch.testing.assert_close(fused(plain, [changed], 0.25), 0.75 * plain + 0.25 * changed)
    assert torch.equal(fused(plain, [changed], 0.0), plain)


def test_several_references_by_how_much_they_change():
    plain = normal(2, 3, 8, DIM)
    some = [plain + scale * normal(2, 3, 8, DIM, seed=s) for s, scale in enumerate((0.5, 1.0, 3.0), 1)]
    merged = [o.transpose(1, 2).flatten(2) for o in (plain, *some)]  # heads side by side: [rows, tokens, channels]
    lengths = torch.stack([(o - merged[0]).square().sum(-1).sqrt() for o in merged[1:]])
    weights = lengths.exp() / lengths.exp().sum(0)
    wanted = merged[0] + sum(w[..., None] * (o - merged[0]) for w, o in zip(weights, merged[1:]))
    found = fused(plain, some).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)  # lengths are in float32
    torch.testing.assert_close(fused(plain, some[::-1]), fused(plain, some), rtol=0, atol=1e-5)
    torch.testing.assert_close(fused(plain, [some[0]] * 3), some[0], rtol=0, atol=1e-6)
