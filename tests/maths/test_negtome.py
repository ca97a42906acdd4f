"""NegToMe: the properties that the rule has whatever the tokens are."""

import pytest
import torch

from guidekit.tests.maths.memory import PeakMemory
from samplers.attention.negtome import MATCHINGS, REFERENCES, negtome, negtome_among
from samplers.kernels import matching

F, N, C = 3, 24, 10


def tokens(seed=1, images=F, count=N):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((images, count, C), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("settings", [{"alpha": 0.0, "threshold": -1.0}, {"alpha": 0.9, "threshold": 1.0}])
@pytest.mark.parametrize("matching", MATCHINGS)
def test_identities(settings, matching):
    h, r = tokens(1), tokens(2, 1)
    assert torch.equal(negtome(h, r, **settings, matching=matching), h)


@pytest.mark.parametrize("among", REFERENCES)
def test_a_batch_of_one_stays(among):
    h = tokens(1, 1)
    assert negtome_among(h, among, 0.9, -1.0) is h


@pytest.mark.parametrize("alpha", [-0.5, 0.9, 3.0])
@pytest.mark.parametrize("among", ["first image", "previous image"])
def test_the_first_image_stays(among, alpha):
    h = tokens(1)
    pushed = negtome_among(h, among, alpha, -1.0)
    assert torch.equal(pushed[0], h[0])
    assert not torch.equal(pushed[1], h[1])


def test_the_reference_is_the_one_that_is_named():
    h = tokens(1)
    assert torch.equal(negtome_among(h, "first image", 0.9, 0.1)[1:], negtome(h[1:], h[:1], 0.9, 0.1))
    previous = negtome_among(h, "previous image", 0.9, 0.1)
    others = negtome_among(h, "all other images", 0.9, 0.1)
    for i in range(1, F):
        assert torch.allclose(previous[i : i + 1], negtome(h[i : i + 1], h[i - 1 : i], 0.9, 0.1))
    for i in range(F):
        rest = h[[j for j in range(F) if j != i]].reshape(1, -1, C)
        assert torch.allclose(others[i : i + 1], negtome(h[i : i + 1], rest, 0.9, 0.1))


def test_permutations_of_tokens_go_through_and_of_the_reference_do_nothing():
    """What the published index rule does not do."""
    h, r, mask = tokens(1), tokens(2, 1), torch.arange(N) % 4 != 0
    own, theirs = (torch.randperm(N, generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    pushed = negtome(h, r, 0.9, 0.1, mask)
    assert torch.allclose(negtome(h[:, own], r, 0.9, 0.1, mask), pushed[:, own])
    assert torch.allclose(negtome(h, r[:, theirs], 0.9, 0.1, mask[theirs]), pushed)
    official = negtome(h, r, 0.9, 0.1, matching="official")
    assert not torch.allclose(negtome(h, r[:, theirs], 0.9, 0.1, matching="official"), official)


def test_a_reference_of_the_same_tokens_in_any_order_changes_nothing():
    h = tokens(1, 1)
    r = h[:, torch.randperm(N, generator=torch.Generator().manual_seed(3))]
    assert torch.allclose(negtome(h, r, 0.9, 0.5), h)
    assert not torch.allclose(negtome(h, r, 0.9, 0.5, matching="official"), h)


def test_a_matched_pair_moves_apart_by_1_plus_alpha():
    h, r = tokens(1, 1), tokens(2, 1)
    pushed = negtome(h, r, 0.9, -1.0)
    similarity = torch.nn.functional.cosine_similarity(h[0][:, None], r[0][None], dim=-1)
    partner = r[0][similarity.argmax(1)]
    assert torch.allclose(pushed[0] - partner, 1.9 * (h[0] - partner))


def test_official_is_the_published_index_rule():
    """max and argmax over the tokens for each reference token; the index is then used in the reference."""
    h, r = tokens(1), tokens(2, 1)
    found = negtome(h, r, 0.9, 0.2, matching="official")
    for image in range(F):
        similarity = torch.nn.functional.cosine_similarity(h[image][:, None], r[0][None], dim=-1)  # [own, reference]
        best, at = similarity.max(0)
        wanted = torch.where((best > 0.2)[:, None], 1.9 * h[image] - 0.9 * r[0][at], h[image])
        assert torch.allclose(found[image], wanted)


def test_official_equals_source_where_matching_is_the_identity():
    r = tokens(2, 1)
    h = r + 0.01 * tokens(3, 1)
    assert torch.allclose(negtome(h, r, 0.9, 0.5), negtome(h, r, 0.9, 0.5, matching="official"))


def test_every_token_used_is_under_the_mask():
    h, r, mask = tokens(1), tokens(2, 1), torch.arange(N) < 5
    assert torch.allclose(negtome(h, r, 0.9, -1.0, mask), negtome(h, r[:, :5], 0.9, -1.0))
    frozen = negtome(h, r, 0.9, -1.0, mask, matching="official")
    assert torch.equal(frozen[:, 5:], h[:, 5:])
    others = negtome_among(h, "all other images", 0.9, -1.0, mask)
    assert torch.allclose(others[:1], negtome(h[:1], h[1:, :5].reshape(1, -1, C), 0.9, -1.0))


def test_all_other_images_are_not_copied_for_each_image(monkeypatch):
    """Eight images: seven copies of the batch would be made."""
    monkeypatch.setattr(matching, "STRIPE", 4096)
    h = torch.randn((8, 64, 128), generator=torch.Generator().manual_seed(1))
    with PeakMemory() as memory:
        negtome_among(h, "all other images", 0.9, 0.1)
    assert memory.peak < 6 * h.nbytes


def test_references_with_another_number_of_tokens():
    h, r = tokens(1), tokens(2, 1, 40)
    assert negtome(h, r, 0.9, 0.1).shape == h.shape
    with pytest.raises(ValueError, match="as many tokens as the reference has, not 24 and 40"):
        negtome(h, r, 0.9, 0.1, matching="official")


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="It is one of source, official"):
        negtome(tokens(1), tokens(2), 0.9, 0.1, matching="best")
    with pytest.raises(ValueError, match="It is one of first image"):
        negtome_among(tokens(1), "last image", 0.9, 0.1)
