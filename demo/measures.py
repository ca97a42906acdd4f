"""Measures of pictures, RGB in 0..1, [n, 3, H, W]. All but the Fréchet distance give one number per picture."""

import torch
from torch import Tensor


def saturation(pictures: Tensor) -> Tensor:
    """Mean HSV saturation, (max - min) / max over the channels, black counting as 0."""
    high, low = pictures.amax(1), pictures.amin(1)
    return torch.where(high > 0, (high - low) / high.clamp(min=1e-8), 0.0).mean((1, 2))


def contrast(pictures: Tensor) -> Tensor:
    """Standard deviation of the grey values."""
    return pictures.mean(1).flatten(1).std(1)


def clipped(pictures: Tensor) -> Tensor:
    """Share of values at the ends of the range: detail lost to over-guidance."""
    return ((pictures <= 0) | (pictures >= 1)).float().flatten(1).mean(1)


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance (Heusel et al. 2017) between two sets of feature vectors [n, d] taken as Gaussians."""
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    # tr sqrt(A B) from the eigenvalues of A B, which are real and not negative.
    product = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return (gap + cov_a.trace() + cov_b.trace() - 2 * product).item()


def bootstrap(values: Tensor, rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `values` (for paired comparisons: of the differences)."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (rounds, len(values)), generator=generator)
    means = values.double()[picks].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
