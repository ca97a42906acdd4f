"""Direct Inversion (Ju et al.: "PnP Inversion: Boosting Diffusion-based Editing with 3 Lines of Code", ICLR 2024, arXiv
2310.01506): a deterministic inversion is recorded step by step, and sampling sets the source to it after each step.

After each step of the generation, the paper adds to the source the difference from the recorded latent. The sum is the
recorded latent, so here it is set directly, and the source's own step is not used. The purpose is that the tokens of
the source inside the network are those of the given image at every step, for other rows of the batch to use.

Tensors are [B, ...], in the coordinates of `reversible.py`: dx / dsigma = f.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reversible import Drift


def record(f: Drift, image: Tensor, sigmas: Sequence[float], before: Callable[[int], None]) -> list[Tensor]:
    """DDIM inversion: [x_0, ..., x_N], from the noisy end to `image`, at the falling levels `sigmas`.

        x_i = x_{i+1} + (sigma_i - sigma_{i+1}) f(x_{i+1}, sigma_i)

    As in the paper, the drift is evaluated at the level that the step goes to. `before(i)` is called before f is
    evaluated for step i of the generation, which goes from level i to level i + 1.
    """
    x, kept = image, [image]
    for i in reversed(range(len(sigmas) - 1)):
        before(i)
        x = x + (sigmas[i] - sigmas[i + 1]) * f(x, sigmas[i])
        kept.append(x)
    return kept[::-1]


def replay(f: Drift, source: Sequence[Tensor], sigmas: Sequence[float], before: Callable[[int], None]) -> Tensor:
    """DDIM sampling of a batch [source, target], both from `source[0]`; row 0, the source, is set to `source[i]` at
    every level i. `source`: the result of `record`, each [1, ...]. Returns [2, ...]."""
    x = torch.cat([source[0], source[0]])
    for i, (sigma, target) in enumerate(zip(sigmas, sigmas[1:])):
        before(i)
        x = x + (target - sigma) * f(x, sigma)
        x = torch.cat([source[i + 1], x[1:]])
    return x
