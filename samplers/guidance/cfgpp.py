"""CFG++ (Chung, Kim, Park, Nam, Ye: "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", ICLR
2025, arXiv 2406.08070): guided Tweedie estimate, unguided renoising.

One rule gives every sampler here: it is its plain version, run on the unconditional prediction, plus lambda (D_c - D_u)
on the data term at full weight. With D_lambda = D_u + lambda (D_c - D_u), Euler becomes the paper's Algorithm 2,
x' = alpha' D_lambda + sigma' n_u, and DPM++ 2M and 2S become those of the authors' code. Sources: that code
(CFGpp-diffusion/CFGpp), DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), SDE form as in k-diffusion.

Notation: x = alpha x0 + sigma n, where alpha is 1, or 1 - sigma for a rectified flow. Everything is written with
rho = (sigma' alpha) / (sigma alpha'), which is e^-h for a step h in half the log SNR, so that a flow may begin at
sigma = 1, alpha = 0. Tensors x [B, ...] of any rank; sigmas [n + 1], falling to 0.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_SIGNAL = 1e-4  # stands for alpha = 0 at the start of a flow where a midpoint in log SNR is asked for


class Prediction(NamedTuple):
    """What a sampler needs to know at (x, sigma).

    denoised: the guided prediction, all that other techniques add included.
    base: the same with the unconditional one in place of D_cfg.
    push: lambda (D_c - D_u).
    """

    denoised: Tensor
    base: Tensor
    push: Tensor


# evaluate(x, sigma, factor): the prediction. For plain Euler the same guidance would be CFG at factor * lambda: what
# other techniques should see as the scale.
Evaluate = Callable[[Tensor, float, float], Prediction]
# noise(sigma, sigma_next): a unit normal tensor of the shape of x.
Noise = Callable[[float, float], Tensor]
Report = Callable[[int, Tensor, float, Tensor], None]  # (step, x, sigma, denoised)


def signal(sigma: float, flow: bool) -> float:
    """alpha at `sigma`."""
    return 1 - sigma if flow else 1.0


def equivalent_scale(guidance_lambda: float, sigma: float, target: float, flow: bool) -> float:
    """w for which an Euler step of CFG from `sigma` to `target` is the step of CFG++.

    Sampling: w = lambda / (1 - rho), lambda itself in the last step. Inversion (target above sigma): the exact dual,
    which renoises with the guided prediction and denoises with the unguided one, w = lambda rho / (rho - 1).
    """
    kept = target * signal(sigma, flow) / sigma  # rho alpha'
    weight = signal(target, flow) - kept
    if weight == 0:
        return guidance_lambda  # a step of no length
    return guidance_lambda * (signal(target, flow) if weight > 0 else -kept) / weight


def euler(
    evaluate: Evaluate, x: Tensor, sigmas: Tensor, flow: bool, *, eta: float = 0.0, noise: Noise, report: Report
) -> Tensor:
    """Euler, and Euler ancestral for eta above 0: x' = alpha' D_lambda + sigma_down n_u + sigma_up n."""
    for i, (sigma, target) in enumerate(pairwise(sigmas.tolist())):
        rho = _rho(sigma, target, flow)
        d = _ancestral(rho, eta)
        prediction = evaluate(x, sigma, _factor(rho * d))
        report(i, x, sigma, prediction.denoised)
        x = _advance(x, sigma, target, flow, rho, d, prediction.base, prediction, noise)
    return x


def dpmpp_2m(
    evaluate: Evaluate, x: Tensor, sigmas: Tensor, flow: bool, *, eta: float = 0.0, noise: Noise, report: Report
) -> Tensor:
    """DPM++ 2M, and its SDE (midpoint) for eta above 0.

    Second order through D_lambda - D_u,old, as the authors' code has it; the paper's text implies D_u - D_u,old.
    """
    history: tuple[Tensor, float] | None = None  # D_u and h of the step before
    for i, (sigma, target) in enumerate(pairwise(sigmas.tolist())):
        rho = _rho(sigma, target, flow)
        d = rho**eta
        h = -math.log(rho) if rho > 0 else math.inf
        prediction = evaluate(x, sigma, _factor(rho * d))
        report(i, x, sigma, prediction.denoised)
        change: Tensor | float = 0.0
        if history is not None:
            old, h_old = history
            change = (prediction.base + prediction.push - old) * (h / h_old) / 2
        x = _advance(x, sigma, target, flow, rho, d, prediction.base + change, prediction, noise)
        if h > 0:  # a repeated sigma is no history
            history = prediction.base, h
    return x


def dpmpp_2s_ancestral(
    evaluate: Evaluate, x: Tensor, sigmas: Tensor, flow: bool, *, eta: float = 1.0, noise: Noise, report: Report
) -> Tensor:
    """DPM++ 2S ancestral: an unguided step to the middle in log SNR, then a guided one with the prediction there."""
    for i, (sigma, target) in enumerate(pairwise(sigmas.tolist())):
        rho = _rho(sigma, target, flow)
        d = _ancestral(rho, eta)
        prediction = evaluate(x, sigma, _factor(rho * d))
        report(i, x, sigma, prediction.denoised)
        if target > 0:
            ratio = sigma / max(signal(sigma, flow), SMALLEST_SIGNAL)
            whole = target / signal(target, flow) / ratio  # rho, but above 0
            half = math.sqrt(whole * _ancestral(whole, eta))
            middle = ratio * half / (1 + ratio * half) if flow else ratio * half
            unguided = prediction._replace(push=torch.zeros_like(x))
            between = _advance(x, sigma, middle, flow, half, 1.0, prediction.base, unguided, noise)
            prediction = evaluate(between, middle, _factor(rho * d))
        x = _advance(x, sigma, target, flow, rho, d, prediction.base, prediction, noise)
    return x


def invert(evaluate: Evaluate, x: Tensor, sigmas: Tensor, flow: bool, *, report: Report) -> Tensor:
    """DDIM inversion of CFG++: x = alpha D_u(x') + sigma (x' - alpha' D_lambda(x')) / sigma', sigmas rising.

    The exact inverse of the Euler step where the predictions do not depend on x. Computed as Euler at the scale that
    amounts to it.
    """
    for i, (sigma, target) in enumerate(pairwise(sigmas.tolist())):
        denoised = evaluate(x, sigma, equivalent_scale(1.0, sigma, target, flow)).denoised
        report(i, x, sigma, denoised)
        x = denoised + target / sigma * (x - denoised)
    return x


def _rho(sigma: float, target: float, flow: bool) -> float:
    return target * signal(sigma, flow) / (sigma * signal(target, flow))


def _factor(kept: float) -> float:
    return 1 / (1 - kept) if kept != 1 else 1.0  # a step of no length needs no scale


def _ancestral(rho: float, eta: float) -> float:
    """sigma_down / sigma' of an ancestral step."""
    return math.sqrt(max(1 - eta**2 * (1 - rho**2), 0.0))


def _advance(
    x: Tensor,
    sigma: float,
    target: float,
    flow: bool,
    rho: float,
    d: float,
    base: Tensor,
    prediction: Prediction,
    noise: Noise,
) -> Tensor:
    """alpha' ((1 - rho d) base + push) + sigma' (d x / sigma + sqrt(1 - d^2) n): a share d^2 of the variance of the
    noise at `target` is carried over, the rest is new."""
    if target == 0:
        return prediction.denoised
    if rho == 1:
        return x  # schedules may repeat a sigma; the push belongs to steps
    x = d * target / sigma * x + signal(target, flow) * ((1 - rho * d) * base + prediction.push)
    return x if d == 1 else x + target * math.sqrt((1 - d) * (1 + d)) * noise(sigma, target)
