"""Measures of images, RGB in 0..1, [n, 3, H, W]. All but the Fréchet distance give one number per image."""

import torch
from torch import Tensor


def saturation(images: Tensor) -> Tensor:
    """Mean HSV saturation, (max - min) / max over the channels, black counting as 0."""
    high, low = images.amax(1), images.amin(1)
    return torch.where(high > 0, (high - low) / high.clamp(min=1e-8), 0.0).mean((1, 2))


def contrast(images: Tensor) -> Tensor:
    """Standard deviation of the grey values."""
    return images.mean(1).flatten(1).std(1)


def clipped(images: Tensor) -> Tensor:
    """Share of values at the ends of the range: detail lost to over-guidance."""
    return ((images <= 0) | (images >= 1)).float().flatten(1).mean(1)


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance (Heusel et al. 2017) between two sets of feature vectors [n, d] taken as Gaussians."""
    a, b = a.double(), b.double()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = a.T.cov(), b.T.cov()
    # tr sqrt(A B) from the eigenvalues of A B, which are real and not negative.
    product = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return (gap + cov_a.trace() + cov_b.trace() - 2 * product).item()


def spread(features: Tensor, together: int) -> float:
    """Diversity within a prompt: mean distance between feature vectors [n, d] of images of one prompt, of which
    `together` follow each other; mean over the prompts."""
    groups = features.unflatten(0, (-1, together))
    return (torch.cdist(groups, groups).sum((1, 2)) / (together * (together - 1))).mean().item()


def grown(mask: Tensor, pixels: int) -> Tensor:
    """A mask [n, H, W] with what lies up to so many pixels (of a square) around it: where a solid throws its shadow
    and shows its edge."""
    return torch.nn.functional.max_pool2d(mask[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def change(before: Tensor, after: Tensor, mask: Tensor, margin: int = 4) -> tuple[Tensor, Tensor]:
    """Of an edit meant to change what `mask` [n, H, W] shows: rms change inside the mask, and rms change outside it,
    farther than `margin` pixels; each [n]. An edit is good if the first is large and the second small."""
    square = (after - before).square().mean(1)
    outside = 1 - grown(mask, margin)
    return tuple((square * part).sum((1, 2)).div(part.sum((1, 2)).clamp(min=1e-8)).sqrt() for part in (mask, outside))


def bootstrap(values: Tensor, rounds: int = 2000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `values` (for paired comparisons: of the differences)."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (rounds, len(values)), generator=generator)
    means = values.double()[picks].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
