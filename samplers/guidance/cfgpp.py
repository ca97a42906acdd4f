"""CFG++ (Chung, Kim, Park, Nam, Ye: "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", ICLR
2025, arXiv 2406.08070): guided Tweedie estimate, unguided renoising.

All samplers here follow one rule: run the plain sampler on the unconditional prediction, and add lambda (D_c - D_u) to
the data term at full weight. With D_lambda = D_u + lambda (D_c - D_u), Euler becomes the paper's Algorithm 2,
x' = alpha' D_lambda + sigma' n_u, and DPM++ 2M and 2S become those of the authors' code. Sources: that code
(CFGpp-diffusion/CFGpp), DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), SDE form as in k-diffusion.

Notation: x = alpha x0 + sigma n, where alpha is 1, or 1 - sigma for a rectified flow. Everything is written in terms of
rho = (sigma' alpha) / (sigma alpha'), which is e^-h for a step h in half the log SNR, so that a flow may begin at
sigma = 1, alpha = 0. Tensors x [B, ...] of any rank; sigmas [n + 1], falling to 0.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_SIGNAL = 1e-4  # replaces alpha = 0 at the start of a flow, which has no midpoint in log SNR


class Prediction(NamedTuple):
    """The predictions at (x, sigma) that a sampler needs, each [B, ...] in x0 space.

    denoised: the guided prediction, with the corrections of other techniques.
    base: the same with D_u instead of D_cfg.
    push: lambda (D_c - D_u).
    """

    denoised: Tensor
    base: Tensor
    push: Tensor


# evaluate(x, sigma, factor): the prediction. factor * lambda is the equivalent CFG scale of plain Euler, which other
# techniques should use as the scale.
Evaluate = Callable[[Tensor, float, float], Prediction]
# noise(sigma, sigma_next): a unit normal tensor of the shape of x.
Noise = Callable[[float, float], Tensor]
Report = Callable[[int, Tensor, float, Tensor], None]  # (step, x, sigma, denoised)


def signal(sigma: float, flow: bool) -> float:
    """alpha at `sigma`."""
    return 1 - sigma if flow else 1.0


def equivalent_scale(guidance_lambda: float, sigma: float, target: float, flow: bool) -> float:
    """The CFG scale w at which an Euler step from `sigma` to `target` equals the step of CFG++.

    Sampling: w = lambda / (1 - rho), which is lambda in the last step. Inversion (target above sigma): the exact dual,
    which renoises with the guided prediction and denoises with the unguided one, w = lambda rho / (rho - 1).
    """
    kept = target * signal(sigma, flow) / sigma  # rho alpha'
    weight = signal(target, flow) - kept
    if weight == 0:
        return guidance_lambda  # a step of length 0
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

    The second-order term uses D_lambda - D_u,old as in the authors' code; the paper's text implies D_u - D_u,old.
    """
    history: tuple[Tensor, float] | None = None  # D_u and h of the previous step
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
        if h > 0:  # not for a repeated sigma
            history = prediction.base, h
    return x


def dpmpp_2s_ancestral(
    evaluate: Evaluate, x: Tensor, sigmas: Tensor, flow: bool, *, eta: float = 1.0, noise: Noise, report: Report
) -> Tensor:
    """DPM++ 2S ancestral: an unguided step to the midpoint in log SNR, then a guided one with the prediction there."""
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

    The exact inverse of the Euler step if the predictions do not depend on x. Computed as an Euler step at the
    equivalent scale.
    """
    for i, (sigma, target) in enumerate(pairwise(sigmas.tolist())):
        denoised = evaluate(x, sigma, equivalent_scale(1.0, sigma, target, flow)).denoised
        report(i, x, sigma, denoised)
        x = denoised + target / sigma * (x - denoised)
    return x


def _rho(sigma: float, target: float, flow: bool) -> float:
    return target * signal(sigma, flow) / (sigma * signal(target, flow))


def _factor(kept: float) -> float:
    return 1 / (1 - kept) if kept != 1 else 1.0  # any factor will do for a step of length 0


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
    """alpha' ((1 - rho d) base + push) + sigma' (d x / sigma + sqrt(1 - d^2) n): a fraction d^2 of the variance of the
    noise at `target` comes from x, the rest is new."""
    if target == 0:
        return prediction.denoised
    if rho == 1:
        return x  # a repeated sigma: no step, so no push
    x = d * target / sigma * x + signal(target, flow) * ((1 - rho * d) * base + prediction.push)
    return x if d == 1 else x + target * math.sqrt((1 - d) * (1 + d)) * noise(sigma, target)
