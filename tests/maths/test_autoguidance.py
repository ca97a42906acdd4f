"""Random degradation of tokens: the right amount, the same for every sample."""

import pytest
import torch

from guidekit.samplers.attention.autoguidance import add_noise, drop
from guidekit.tests.maths.problems import DTYPES


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.75])
def test_drops_its_share_and_keeps_the_mean(probability, dtype):
    tokens = torch.ones(2, 4, 500, 16, dtype=dtype)
    found = drop(tokens, probability, seeded())
    assert found.dtype == dtype
    zeros = (found == 0).float().mean().item()
    assert zeros == pytest.approx(probability, abs=0.01)
    assert found.double().mean().item() == pytest.approx(1.0, abs=0.02)
    kept = found[found != 0].double()
    assert kept.min() == kept.max() == pytest.approx(1 / (1 - probability), rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_has_the_size_asked_for_in_each_row(dtype):
    tokens = torch.randn(2, 4, 500, 16, generator=seeded()).to(dtype)
    tokens[1] *= 4
    added = (add_noise(tokens, 0.5, seeded(2)) - tokens).double()
    for row, size in zip(added, tokens.double()):
        assert row.std().item() == pytest.approx(0.5 * size.square().mean().sqrt().item(), rel=0.03)
        assert row.mean().abs() < 0.02 * size.std()


@pytest.mark.parametrize("degrade", [drop, add_noise])
def test_rows_share_the_pattern_and_seeds_do_not(degrade):
    tokens = torch.randn(1, 2, 9, 4, generator=seeded()).expand(3, -1, -1, -1)
    found = degrade(tokens, 0.5, seeded(2))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[:1], degrade(tokens[:1], 0.5, seeded(2)))
    assert not torch.equal(found, degrade(tokens, 0.5, seeded(3)))


@pytest.mark.parametrize("degrade", [drop, add_noise])
def test_amount_0_changes_nothing(degrade):
    tokens = torch.randn(2, 2, 9, 4, generator=seeded())
    assert torch.equal(degrade(tokens, 0.0, seeded()), tokens)
