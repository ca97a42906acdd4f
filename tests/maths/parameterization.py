"""Between a denoised prediction (x0) and the raw outputs of the model types.

`x` is the noisy latent in the host's coordinates (x = x0 + sigma n, or x = (1 - t) x0 + t n for flow), `denoised` the
x0 prediction, `sigma` [B] or a number; all of one shape [B, ...] otherwise. Every map is affine in `denoised` at fixed
(x, sigma), so that affine combinations of predictions are the same in every space (Karras et al. 2022, Salimans & Ho
2022, Lipman et al. 2023).
"""

from torch import Tensor


def match_rank(sigma: Tensor | float, x: Tensor) -> Tensor:
    """`sigma` as [B, 1, ..., 1] (or a scalar tensor) in the precision and on the device of `x`."""
    if not isinstance(sigma, Tensor):
        return x.new_full((), sigma)
    sigma = sigma.to(x.device, x.dtype)
    return sigma if sigma.ndim == 0 else sigma.reshape(-1, *[1] * (x.ndim - 1))


def to_eps(x: Tensor, denoised: Tensor, sigma: Tensor | float) -> Tensor:
    """Noise prediction of a variance-exploding model: (x - x0) / sigma."""
    return (x - denoised) / match_rank(sigma, x)


def from_eps(x: Tensor, eps: Tensor, sigma: Tensor | float) -> Tensor:
    """Inverse of `to_eps`."""
    return x - match_rank(sigma, x) * eps


def to_v(x: Tensor, denoised: Tensor, sigma: Tensor | float) -> Tensor:
    """v prediction with sigma_data = 1: (x / (1 + sigma^2) - x0) sqrt(1 + sigma^2) / sigma."""
    s = match_rank(sigma, x)
    return (x / (1 + s**2) - denoised) * (1 + s**2).sqrt() / s


def from_v(x: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """Inverse of `to_v`."""
    s = match_rank(sigma, x)
    return x / (1 + s**2) - v * s / (1 + s**2).sqrt()


def to_velocity(x: Tensor, denoised: Tensor, sigma: Tensor | float) -> Tensor:
    """Velocity n - x0 of a rectified flow at t = sigma: (x - x0) / t."""
    return to_eps(x, denoised, sigma)


def from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Inverse of `to_velocity`."""
    return from_eps(x, velocity, sigma)
