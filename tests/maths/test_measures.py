"""Measures of images with known answers."""

import math

import pytest
import torch

from guidekit.demo.measures import change, grown, spread


def test_spread_is_the_mean_distance_within_a_prompt():
    features = torch.tensor([[0.0, 0], [3, 4], [0, 0], [10, 10], [10, 10], [10, 16]])  # distances 5, 0, 5; 0, 6, 6
    assert spread(features, 3) == pytest.approx((10 / 3 + 12 / 3) / 2)


def test_a_grown_mask_reaches_so_many_pixels_further():
    mask = torch.zeros(1, 9, 9)
    mask[0, 4, 5] = 1
    wanted = torch.zeros(1, 9, 9)
    wanted[0, 2:7, 3:8] = 1
    assert torch.equal(grown(mask, 2), wanted)
    assert torch.equal(grown(mask, 0), mask)


def test_change_inside_and_outside_a_mask():
    before, after = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    mask = torch.zeros(2, 16, 16)
    mask[:, 6:8, 6:8] = 1
    after[0, :, 6:8, 6:8] = 0.5
    after[0, :, 4, 4] = 1.0  # within the margin: neither inside nor outside
    after[1, 0, 15, 15] = 0.6
    inside, outside = change(before, after, mask, margin=2)
    assert inside.tolist() == pytest.approx([0.5, 0.0])
    assert outside.tolist() == pytest.approx([0.0, math.sqrt(0.36 / 3 / (256 - 36))])
    half = torch.full((2, 16, 16), 0.5)
    everywhere = torch.full_like(before, 0.2)
    assert change(before, everywhere, half)[0].tolist() == pytest.approx([0.2, 0.2])
