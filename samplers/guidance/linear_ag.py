"""LinearAG (Castillo et al.: "Adaptive Guidance", AAAI 2025, arXiv 2312.12487, section 5.1): the unconditional output
as a linear combination of outputs that are already known.

    u_t  ~  sum_{i <= t} a_{t,i} c_i  +  sum_{i < t} b_{t,i} u_i

with one scalar per step and regressor, in the space of the network's output (eps, v or velocity); in x0 space the
coefficients would be different, because x and sigma differ between steps. c_i and u_i are the conditional and
unconditional outputs of step i, i = 0 being the first; for a u_i that was not evaluated its estimate is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reductions import wide_dtype

GUIDED, ESTIMATED, CONDITIONAL = "guided", "estimated", "conditional"


@dataclass(frozen=True)
class Coefficients:
    """a (`cond`) and b (`uncond`) of the formula, [T, T] each in float64: row t of a is filled up to t, of b up to
    t - 1."""

    cond: Tensor
    uncond: Tensor

    @property
    def steps(self) -> int:
        return len(self.cond)


def gram(cond: Sequence[Tensor], uncond: Sequence[Tensor]) -> Tensor:
    """The inner products of all outputs of a run, [2T, 2T], summed over its samples, in double precision on the CPU.

    cond, uncond: T tensors [B, ...], network outputs; the first T rows are `cond`. Matrices of several runs can be
    summed in any order."""
    outputs = [*cond, *uncond]
    rows = torch.stack([v.flatten().to(wide_dtype(v.device)) for v in outputs])
    return (rows @ rows.T).to("cpu", torch.float64)


def fit(products: Tensor, ridge: float = 1e-6) -> Coefficients:
    """The least-squares fit over all runs in `products`, a sum of `gram` [2T, 2T], with `ridge` times the mean of the
    diagonal added to the diagonal.

    Raises:
        ValueError: `products` are not finite.
    """
    if not torch.isfinite(products).all():
        raise ValueError("The outputs of the network are not finite: there is nothing to fit.")
    steps = len(products) // 2
    cond, uncond = (torch.zeros(steps, steps, dtype=torch.float64) for _ in range(2))
    for t in range(steps):
        known = [*range(t + 1), *range(steps, steps + t)]
        a = products[known][:, known]
        a = a + ridge * a.diagonal().mean() * torch.eye(len(known), dtype=a.dtype)
        # Not `solve`: without ridge, or with equal outputs, the matrix is singular.
        solution = torch.linalg.lstsq(a, products[known, steps + t, None], driver="gelsd").solution[:, 0]
        cond[t, : t + 1], uncond[t, :t] = solution[: t + 1], solution[t + 1 :]
    return Coefficients(cond, uncond)


def unexplained(products: Tensor, coefficients: Coefficients) -> Tensor:
    """|u - estimate|^2 / |u - c|^2 of each step, [T], over all runs in `products`: 0 is a perfect estimate, 1 is no
    better than the conditional output as the estimate."""
    steps = coefficients.steps
    out = []
    for t in range(steps):
        error, naive = (torch.zeros(2 * steps, dtype=torch.float64) for _ in range(2))
        error[:steps], error[steps:] = -coefficients.cond[t], -coefficients.uncond[t]
        naive[t] = -1
        error[steps + t] += 1
        naive[steps + t] += 1
        out.append((error @ products @ error) / (naive @ products @ naive))
    return torch.stack(out)


def estimate(coefficients: Coefficients, step: int, cond: Sequence[Tensor], uncond: Sequence[Tensor]) -> Tensor:
    """The estimate of u_step, [B, ...], from c_0 .. c_step and u_0 .. u_{step - 1}, in the dtype and on the device of
    `cond`."""
    weights = [*coefficients.cond[step, : step + 1].tolist(), *coefficients.uncond[step, :step].tolist()]
    return sum(w * v for w, v in zip(weights, [*cond[: step + 1], *uncond[:step]], strict=True))


def policy(step: int, steps: int) -> str:
    """The paper's schedule, GUIDED, ESTIMATED or CONDITIONAL: in the first half every other step uses the estimate, in
    the second half all steps use the positive alone. 20 steps need 25 evaluations instead of 40."""
    if step >= steps // 2:
        return CONDITIONAL
    return ESTIMATED if step % 2 else GUIDED
